# The manifest that every script reads, and the model that the trials load.


localrules:
    matrix,


rule matrix:
    output:
        matrix.MANIFEST,
    log:
        "results/logs/matrix.log",
    conda:
        "../../envs/crewbench.yaml"
    params:
        # All that the manifest says: it is written again when, and only when, it would say something else.
        digest=matrix.digest(MATRIX.manifest()),
        config=matrix.canonical_json(config),
        gpus=MATRIX.devices.count if MATRIX.devices.kind == "gpu" else 0,
    shell:
        script(
            "matrix",
            "--config {params.config:q} --gpus {params.gpus} --digest {params.digest} --out {output}",
        )


rule model:
    input:
        # The manifest changes more often than the model does, whose directory carries a hash of its section.
        matrix=ancient(rules.matrix.output),
    output:
        manifest=f"{MATRIX.model.dir}/manifest.json",
    log:
        f"results/logs/model/{MATRIX.model.model_id}.log",
    conda:
        "../../envs/crewbench.yaml"
    threads: 8
    resources:
        mem_mb=2000 + 3 * MATRIX.model.weights_mib,
        runtime=60,
    params:
        dir=lambda wildcards, output: os.path.dirname(output.manifest),
        code=code_hash.code_hash(code_hash.MODEL),
    shell:
        script("model", "--matrix {input.matrix} --out {params.dir}")
