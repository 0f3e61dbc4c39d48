# Frames and trajectory → intensity and contrast maps.


rule decay:
    input:
        frames=FRAMES,
        trajectory=TRAJECTORY,
    output:
        decay=DECAY,
    log:
        f"{OF_SERIES}logs/decay.log",
    benchmark:
        f"{OF_SERIES}benchmarks/decay.tsv"
    priority: 2
    conda:
        "../../envs/torch.yaml"
    threads: up_to(4)
    resources:
        mem_mb=memory_mb(8000),
        runtime=more_each_attempt(240),
        gpu=gpus("decay"),
    params:
        settings=FLAGS["decay"],
        memory=lambda wildcards, input: MEMORY_LIMIT,  # of `input`: not recorded, it changes no result
        cluster=lambda wildcards, input: DASK_SCHEDULER,
        status=STATUS,
        code=CODE["decay"],
        weights=WEIGHTS["decay"],
    message:
        "{wildcards.series}: mapping the decay"
    shell:
        "python -m atomdiffuser decay {input.frames:q} {input.trajectory:q} {output.decay:q} {params.settings:q}"
        " --threads {threads} {params.memory} {params.cluster} --status {params.status:q} --log {log:q}"
