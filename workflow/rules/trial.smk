# One repeat of one cell. A trial that ran is a result whatever became of its agents; only a broken harness
# fails the rule. Its directory carries a hash of all that it reads of the config, so switching something
# and back runs nothing again; its params carry a hash of the code that measures.

TRIAL_DIR = f"{matrix.RESULTS}/trials/{{trial}}/{{spec}}"
MEASURING_CODE = code_hash.code_hash(code_hash.TRIAL)


wildcard_constraints:
    trial="[a-z0-9_-]+",
    spec="[0-9a-f]{8}",


rule trial:
    input:
        model=rules.model.output.manifest,
    output:
        record=f"{TRIAL_DIR}/trial.json",
        agents=f"{TRIAL_DIR}/agents.csv",
        workers=f"{TRIAL_DIR}/workers.csv",
        rounds=f"{TRIAL_DIR}/rounds.csv",
        ooms=f"{TRIAL_DIR}/ooms.csv",
        gpu=f"{TRIAL_DIR}/gpu.csv",
        replays=f"{TRIAL_DIR}/replays.csv",
        servers=f"{TRIAL_DIR}/servers.csv",
        outputs=f"{TRIAL_DIR}/outputs.jsonl",
    log:
        "results/logs/trial/{trial}/{spec}.log",
    priority: lambda wildcards: MATRIX.trial(wildcards.trial, wildcards.spec).priority
    # A second try would hide that the first one failed. On a cluster a trial may ask for a larger allocation,
    # and slurm_executor.py lets nothing else count as a reason; its own call inside the old one has none.
    retries: MATRIX.further_allocations if CLUSTER else 0
    conda:
        "../../envs/crewbench.yaml"
    # Cores that the scheduler sets aside; a trial's own threads are in its Spec.
    threads: lambda wildcards: MATRIX.resources(wildcards.trial)["cores"]
    # The number of devices comes from the cell: Snakemake silently cuts a resource to its limit.
    resources:
        gpu=lambda wildcards, attempt: MATRIX.gpus_next(wildcards.trial, MEASURING_CODE),
        host=lambda wildcards: MATRIX.resources(wildcards.trial)["host"],
        mem_mb=lambda wildcards: MATRIX.resources(wildcards.trial)["mem_mb"],
        runtime=lambda wildcards: MATRIX.resources(wildcards.trial)["runtime"],
        nodes=1,
        slurm_extra=slurm_extra(MATRIX),
    params:
        matrix=matrix.MANIFEST,
        dir=lambda wildcards, output: os.path.dirname(output.record),
        kept=lambda wildcards: MATRIX.kept_dir(wildcards.trial, MEASURING_CODE),
        code=lambda wildcards: f"{MEASURING_CODE}-{MATRIX.deployments8(wildcards.trial)}",
    shell:
        script(
            "trial",
            "--matrix {params.matrix} --trial {wildcards.trial} --out {params.dir} --kept {params.kept}",
        )
