# Raw frames, trajectory and maps → damage of each region, critical fluence.


rule damage:
    input:
        frames=FRAMES,
        trajectory=TRAJECTORY,
        decay=DECAY,
    output:
        table=f"{OF_SERIES}damage.parquet",
        csv=f"{OF_SERIES}damage.csv",
        critical_fluence=f"{OF_SERIES}critical_fluence.csv",
    log:
        f"{OF_SERIES}logs/damage.log",
    benchmark:
        f"{OF_SERIES}benchmarks/damage.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        settings=FLAGS["damage"],
        status=STATUS,
        code=CODE["damage"],
    message:
        "{wildcards.series}: fitting damage against fluence"
    shell:
        "python -m atomdiffuser damage {input.frames:q} {input.trajectory:q} {input.decay:q} {output.table:q}"
        " {output.critical_fluence:q} {params.settings:q}"
        " --threads {threads} --status {params.status:q} --log {log:q}"
