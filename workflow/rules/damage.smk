# Raw frames, trajectory and maps → damage of each region, kinetics, critical fluence, spots, columns, exposure, maps.


rule damage:
    input:
        frames=FRAMES,
        trajectory=TRAJECTORY,
        decay=DECAY,
        regions=region_files,
    output:
        table=f"{OF_SERIES}damage.parquet",
        csv=f"{OF_SERIES}damage.csv",
        critical_fluence=f"{OF_SERIES}critical_fluence.csv",
        kinetics=f"{OF_SERIES}kinetics.csv",
        spots=f"{OF_SERIES}spots.parquet",
        spot_fluence=f"{OF_SERIES}spot_fluence.csv",
        columns=f"{OF_SERIES}columns.parquet",
        exposure=f"{OF_SERIES}exposure.csv",
        in_both=[
            f"{OF_SERIES}{name}"
            for name in (
                "critical_fluence.parquet",
                "kinetics.parquet",
                "spots.csv",
                "spot_fluence.parquet",
                "columns.csv",
                "exposure.parquet",
            )
        ],
        maps=f"{OF_SERIES}damage_maps.zarr/zarr.json",
    log:
        f"{OF_SERIES}logs/damage.log",
    benchmark:
        f"{OF_SERIES}benchmarks/damage.tsv"
    priority: 3
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=more_each_attempt(120),
    params:
        options=damage_options,
        settings=FLAGS["damage"],
        memory=lambda wildcards, input: MEMORY_LIMIT,  # of `input`: not recorded, it changes no result
        status=STATUS,
        code=CODE["damage"],
    message:
        "{wildcards.series}: fitting damage against fluence"
    shell:
        "python -m atomdiffuser damage {input.frames:q} {input.trajectory:q} {input.decay:q} {output.table:q}"
        " {output.critical_fluence:q} {params.options:q} {params.settings:q}"
        " --threads {threads} {params.memory} --status {params.status:q} --log {log:q}"
