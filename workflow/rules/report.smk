# The one page that answers the question.


localrules:
    report,


rule report:
    input:
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
        matrix=matrix.MANIFEST,
        code=code_hash.script_hash("report"),
        # The page may show anything that the manifest says.
        manifest=matrix.digest(MATRIX.manifest()),
    shell:
        script(
            "report",
            "--matrix {params.matrix} --tables {input.tables} --figures {input.figures} --out {output.page}",
        )
