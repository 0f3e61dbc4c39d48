# Raw frames and trajectory → drift-corrected series.


rule align:
    input:
        frames=FRAMES,
        trajectory=TRAJECTORY,
    output:
        aligned=f"{OF_SERIES}aligned.ome.zarr/zarr.json",
    log:
        f"{OF_SERIES}logs/align.log",
    benchmark:
        f"{OF_SERIES}benchmarks/align.tsv"
    priority: 3
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=more_each_attempt(120),
    params:
        settings=FLAGS["align"],
        memory=lambda wildcards, input: MEMORY_LIMIT,  # of `input`: not recorded, it changes no result
        status=STATUS,
        code=CODE["align"],
    message:
        "{wildcards.series}: aligning the frames"
    shell:
        "python -m atomdiffuser align {input.frames:q} {input.trajectory:q} {output.aligned:q} {params.settings:q}"
        " --threads {threads} {params.memory} --status {params.status:q} --log {log:q}"
