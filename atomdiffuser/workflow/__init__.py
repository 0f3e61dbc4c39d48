"""What the Snakefile needs beyond Snakemake: its configuration, its list of series, flags and code fingerprints."""
