"""The loaders give the same model."""


def test_the_parallel_loader_gives_the_same_tokens_as_the_plain_one(small_study):
    study = small_study(
        {
            "warm_rounds": 0,
            "variants": {"fast": {"loader": "parallel"}},
            "runs": [{"mode": "shared", "agents": 2, "variant": ["base", "fast"]}],
        }
    )
    results = [study.run(t) for t in sorted(study.trials)]
    assert [r.trial["status"] for r in results] == ["ok", "ok"], [r.rows("agents") for r in results]
    ids = [[o["output_ids"] for o in r.outputs] for r in results]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
