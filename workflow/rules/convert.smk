# Raw microscope file → frames.ome.zarr. The raw files are ancient: their contents count (the fingerprint), not their
# time stamps, which copies and backups do not keep.


rule convert:
    input:
        raw=ancient(trackable_raw_files),
    output:
        frames=FRAMES,
    log:
        f"{OF_SERIES}logs/convert.log",
    benchmark:
        f"{OF_SERIES}benchmarks/convert.tsv"
    conda:
        "../../envs/io.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=more_each_attempt(120),
    params:
        raw=raw_files,
        names=names_of_series,
        settings=FLAGS["convert"],
        memory=lambda wildcards, input: MEMORY_LIMIT,  # of `input`: not recorded, it changes no result
        status=STATUS,
        code=CODE["convert"],
    message:
        "{wildcards.series}: reading the raw file"
    shell:
        "python -m atomdiffuser convert {params.raw:q} {output.frames:q} {params.names:q} {params.settings:q}"
        " --threads {threads} {params.memory} --status {params.status:q} --log {log:q}"
