# crewbench: where should the models of a crew live, and what breaks first?
# `snakemake --cores all --resources gpu=8`; the study is config/config.yaml.
import os
import sys

from snakemake.utils import min_version

min_version("9.27")
sys.path.insert(0, f"{workflow.basedir}/scripts")
from crewbench import cluster, code_hash, matrix, problems
from crewbench.progress import follow
from crewbench.workflow import gpu_limit, register_limits, script, slurm_extra, watch_me

watch_me()
with problems.or_exit():
    problems.read_yaml("config/config.yaml")


configfile: "config/config.yaml"


with problems.or_exit():
    MATRIX = matrix.plan(config, files=workflow.configfiles, limit=gpu_limit(workflow))
    CLUSTER = cluster.enter(workflow, MATRIX)
register_limits(workflow, MATRIX, CLUSTER)
follow(workflow, MATRIX, CLUSTER)


include: "workflow/rules/model.smk"
include: "workflow/rules/trial.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.report.output.page,
        rules.figures.output,
        rules.tables.output,
        rules.tables.input,


# The scripts read the manifest. It is no rule's output: Snakemake does not look for other changes in what
# depends on a job that must run, so that behind `ancient` a new trial would wait for the next call.
onstart:
    matrix.write(MATRIX)


onsuccess:
    print(f"The report: {os.path.abspath(rules.report.output.page)}")


onerror:
    print("What failed is in results/logs. The same command goes on where this one stopped.")
