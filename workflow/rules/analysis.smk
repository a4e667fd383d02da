# From the trials' files to tables, and from tables to figures. The scripts read what to expect from the
# manifest: ten thousand names do not fit a command line.


rule tables:
    input:
        matrix=ancient(rules.matrix.output),
        trials=[f"{trial.dir}/trial.json" for trial in MATRIX],
    output:
        directory("results/tables"),
    log:
        "results/logs/tables.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        study=matrix.digest(MATRIX.study()),
    shell:
        script("tables", "--matrix {input.matrix} --out {output}")


rule figures:
    input:
        matrix=ancient(rules.matrix.output),
        tables=rules.tables.output,
    output:
        directory("results/figures"),
    log:
        "results/logs/figures.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        report=MATRIX.config.report.model_dump(),
    shell:
        script("figures", "--matrix {input.matrix} --tables {input.tables} --out {output}")
