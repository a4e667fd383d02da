# From the trials' files to tables, and from tables to figures. The scripts read what to expect from the
# manifest: ten thousand names do not fit a command line.


rule tables:
    input:
        matrix=ancient(rules.matrix.output),
        trials=[f"{trial.dir}/trial.json" for trial in MATRIX],
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
        code=code_hash.script_hash("tables"),
        study=matrix.digest(MATRIX.study()),
    shell:
        script("tables", "--matrix {input.matrix} --out {output}")


rule figures:
    input:
        matrix=ancient(rules.matrix.output),
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
        code=code_hash.script_hash("figures"),
        report=MATRIX.config.report.model_dump(),
        thresholds=MATRIX.config.thresholds.model_dump(),
    shell:
        script("figures", "--matrix {input.matrix} --tables {input.tables} --out {output}")
