"""The loaders give the same model."""


def test_the_parallel_loader_gives_the_same_tokens_as_the_plain_one(small_study):
    study = small_study(
        {
            "warm_rounds": 0,
            "variants": {"fast": {"loader": "parallel"}},
            "runs": [{"mode": "shared", "agents": 2, "variant": ["base", "fast"]}],
        }
    )
    ids = [[o["output_ids"] for o in study.run(t).outputs] for t in sorted(study.trials)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
