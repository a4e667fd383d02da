# The one page that answers the question.


rule report:
    input:
        matrix=ancient(rules.matrix.output),
        tables=rules.tables.output,
        figures=rules.figures.output,
    output:
        page=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"page": "report"},
        ),
    log:
        "results/logs/report.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        code=code_hash.script_hash("report"),
        report=MATRIX.config.report.model_dump(),
        thresholds=MATRIX.config.thresholds.model_dump(),
    shell:
        script(
            "report",
            "--matrix {input.matrix} --tables {input.tables} --figures {input.figures} --out {output.page}",
        )
