# The model that the trials load: built, or checked where it is, and described by a manifest.


rule model:
    output:
        # The directory carries a hash of the config's model section.
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
        matrix=matrix.MANIFEST,
        code=code_hash.code_hash(code_hash.MODEL),
    shell:
        script("model", "--matrix {params.matrix} --out {params.dir}")
