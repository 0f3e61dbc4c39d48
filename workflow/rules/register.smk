# Frames → drift of every pair and one trajectory.


rule register:
    input:
        frames=FRAMES,
        # of a channel whose acquisition has a better one; its pairs lie beside it
        drift=drift_of_other_channel,
    output:
        pairs=f"{OF_SERIES}pairs.parquet",
        trajectory=TRAJECTORY,
    log:
        f"{OF_SERIES}logs/register.log",
    benchmark:
        f"{OF_SERIES}benchmarks/register.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    threads: up_to(4)
    resources:
        mem_mb=memory_mb(8000),
        runtime=more_each_attempt(240),
        gpu=gpus("register"),
    params:
        drift=lambda wildcards: [f"--drift-of={path}" for path in drift_of_other_channel(wildcards)],
        settings=FLAGS["register"],
        memory=lambda wildcards, input: MEMORY_LIMIT,  # of `input`: not recorded, it changes no result
        cluster=lambda wildcards, input: DASK_SCHEDULER,
        status=STATUS,
        code=CODE["register"],
        weights=WEIGHTS["register"],
    message:
        "{wildcards.series}: measuring the drift"
    shell:
        "python -m atomdiffuser register {input.frames:q} {output.pairs:q} {output.trajectory:q} {params.drift:q}"
        " {params.settings:q}"
        " --threads {threads} {params.memory} {params.cluster} --status {params.status:q} --log {log:q}"
