# All results of one series → a page to read. Also writes status.json; that is no output, because Snakemake would delete
# it together with the outputs of a failed job, and it is then that it matters.


rule report_series:
    input:
        frames=rules.convert.output,
        pairs=rules.register.output,
        decay=rules.decay.output,
        damage=rules.damage.output,
        aligned=rules.align.output,
    output:
        html=report(
            f"{OF_SERIES}report.html",
            caption="../report/series.rst",
            category="Series",
            labels={"series": "{series}"},
        ),
    log:
        f"{OF_SERIES}logs/report.log",
    benchmark:
        f"{OF_SERIES}benchmarks/report.tsv"
    priority: 4
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=more_each_attempt(60),
    params:
        results=lambda wildcards, output: os.path.dirname(output.html),
        names=names_of_report,
        # functions of `input`, which Snakemake does not record: neither changes a result by itself
        command=lambda wildcards, input: RUN_COMMAND,
        config_hash=lambda wildcards, input: CONFIG_HASH,
        settings=FLAGS["report"],
        status=STATUS,
        code=CODE["report"],
    message:
        "{wildcards.series}: writing the report"
    shell:
        "python -m atomdiffuser report {params.results:q} {output.html:q} {params.names:q} --command {params.command:q}"
        " --config-hash {params.config_hash}"
        " {params.settings:q} --threads {threads} --status {params.status:q} --log {log:q}"
