# All series → one page, one table and their comparison. The list of series is an input: one that came, went or is
# skipped changes it.


rule summary:
    input:
        reports=expand(rules.report_series.output.html, series=SERIES),
        entries=FOLDERS.relative(SERIES_LIST),
    output:
        html=report(
            SUMMARY_HTML,
            caption="../report/summary.rst",
            category="Session",
            labels={"session": "all series", "kind": "page"},
        ),
        table=report(
            SUMMARY_TABLE,
            caption="../report/summary_table.rst",
            category="Session",
            labels={"session": "all series", "kind": "table"},
        ),
        samples=SAMPLES_TABLE,
        comparison=COMPARISON_TABLE,
        in_both=[name.replace(".csv", ".parquet") for name in (SAMPLES_TABLE, COMPARISON_TABLE)],
    log:
        SUMMARY_LOG,
    benchmark:
        SUMMARY_LOG.replace(".log", ".tsv")
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=more_each_attempt(60),
    params:
        results=lambda wildcards, output: os.path.dirname(output.html) or ".",
        settings=FLAGS["report"],
        code=CODE["summary"],
    message:
        f"Summarising {len(SERIES)} series"
    shell:
        "python -m atomdiffuser summary {params.results:q} {input.entries:q} {output.html:q} {output.table:q}"
        " {params.settings:q} --threads {threads} --log {log:q}"
