# From the trials' files to tables, and from tables to figures. The scripts read what to expect from the
# manifest: ten thousand names do not fit a command line.


# Where a cluster runs the trials, what shows them still runs here.
localrules:
    tables,
    figures,


rule tables:
    input:
        # Every file: one that is missing is measured again, and one that was altered is read again, and found.
        trials=[f"{trial.dir}/{os.path.basename(path)}" for trial in MATRIX for path in rules.trial.output],
        quality=[f"{matrix.RESULTS}/{check.place}/quality.json" for check in MATRIX.checks.values()],
    output:
        report(
            directory("results/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        "results/logs/tables.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        matrix=matrix.MANIFEST,
        code=code_hash.script_hash("tables"),
        trials=matrix.digest(MATRIX.wanted()),
        thresholds=MATRIX.config.thresholds.model_dump(),
    shell:
        script("tables", "--matrix {params.matrix} --out {output}")


rule figures:
    input:
        tables=rules.tables.output,
    output:
        report(
            directory("results/figures"),
            # Not those for phones, NAME-narrow.svg.
            patterns=["{figure,[a-z0-9_]+}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/logs/figures.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        matrix=matrix.MANIFEST,
        code=code_hash.script_hash("figures"),
        palette=MATRIX.config.report.palette,
        png_dpi=MATRIX.config.report.png_dpi,
        thresholds=MATRIX.config.thresholds.model_dump(),
    shell:
        script("figures", "--matrix {params.matrix} --tables {input.tables} --out {output}")
