# AtomDiffuser: from a session folder of raw STEM time series to one page per series and one for the session.
#
#     snakemake --cores 8 --config session=/path/to/session              (add --use-conda for isolated environments)
#
# Settings: config/config.yaml.  Rules: workflow/rules/.  Options that are set for you: workflow/profiles/default/.

import os

from snakemake.utils import min_version

min_version("9.0")

HERE = workflow.current_basedir.get_path_or_uri(secret_free=True)  # this folder, also as a module of another workflow


configfile: f"{HERE}/config/config.yaml" if os.path.isdir(HERE) else workflow.source_path("config/config.yaml")


include: "workflow/rules/common.smk"


if not IS_MODULE:

    workdir: FOLDERS.working


localrules:
    all,


include: "workflow/rules/convert.smk"
include: "workflow/rules/register.smk"
include: "workflow/rules/decay.smk"
include: "workflow/rules/damage.smk"
include: "workflow/rules/align.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/summary.smk"


rule all:
    default_target: True
    input:
        # the reports too: below a summary that exists, Snakemake would not miss them
        reports=rules.summary.input.reports,
        summary=rules.summary.output,
