# Whether an engine computes what the checkpoint says: once for each engine, with the options that change what
# it computes, never per trial. It needs devices as a trial does, and comes after the trials.

QUALITY_DIR = f"{matrix.RESULTS}/quality/{{check}}/{{spec}}"


wildcard_constraints:
    check="[a-z0-9_-]+",


rule quality:
    input:
        model=rules.model.output.manifest,
    output:
        record=f"{QUALITY_DIR}/quality.json",
    log:
        "results/logs/quality/{check}/{spec}.log",
    conda:
        "../../envs/crewbench.yaml"
    threads: lambda wildcards: MATRIX.check_resources(wildcards.check)["cores"]
    resources:
        gpu=lambda wildcards: MATRIX.check_resources(wildcards.check)["gpu"],
        host=lambda wildcards: MATRIX.check_resources(wildcards.check)["host"],
        mem_mb=lambda wildcards: MATRIX.check_resources(wildcards.check)["mem_mb"],
        runtime=lambda wildcards: MATRIX.check_resources(wildcards.check)["runtime"],
        nodes=1,
        slurm_extra=slurm_extra(MATRIX),
    params:
        matrix=matrix.MANIFEST,
        dir=lambda wildcards, output: os.path.dirname(output.record),
        code=code_hash.code_hash(code_hash.QUALITY),
    shell:
        script("quality", "--matrix {params.matrix} --check {wildcards.check} --out {params.dir}")
