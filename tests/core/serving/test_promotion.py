"""The gate before serving, with rankings by hand; killed and damaged promotions."""

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import log2
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pixrec_core import files, pipeline
from pixrec_core.data.sequences import catalogue_digest, read_items, read_sequences
from pixrec_core.errors import ArtefactError, MissingArtefactError, QueryError
from pixrec_core.paths import DatasetPaths
from pixrec_core.recommenders import load_model
from pixrec_core.schemas import ITEM, ITEMS, RANKING_SCHEMA, TEST, USER
from pixrec_core.serving import Recommender, gate, promotion
from pixrec_core.serving.promotion import list_promotions, read_promotion
from pixrec_core.serving.server.live import LiveRecommender
from pixrec_core.settings import CandidateRules, DatasetSettings
from pixrec_core.stages import Stats, Work
from tests.core import shop as shops
from tests.forks import exit_code

USERS = 58

USER_ENCODERS = ("items",)  # what is tested here does not read them


def rank(work: Work, rank_of: Callable[[int], int]) -> None:
    """Write a ranking of the whole catalogue with the target of the n-th user at rank `rank_of(n)`."""
    items, rows = read_items(work.paths)[ITEM].to_list(), []
    for n, (user, bought) in enumerate(read_sequences(work.paths, TEST).select(USER, ITEMS).rows()):
        others = [item for item in items if item != bought[-1]]
        ranked = [*others[: rank_of(n) - 1], bought[-1], *others[rank_of(n) - 1 :]]
        rows += [(user, number, item, -float(number)) for number, item in enumerate(ranked, 1)]
    with files.replacing(work.variant_paths.ranking) as path:
        pl.DataFrame(rows, RANKING_SCHEMA, orient="row").write_parquet(path)


def promote(work: Work, rank_of: Callable[[int], int], tolerance: float = 0.0) -> Stats:
    rank(work, rank_of)
    settings = work.dataset_settings.model_copy(
        update={"promotion": work.dataset_settings.promotion.model_copy(update={"tolerance": tolerance})}
    )
    return gate.promote_unless_worse("shop", settings, work.paths, ["text_only"])


def new_targets(work: Work, users: int) -> None:
    """Change the last item of the first users."""
    with files.replacing(work.paths.sequences) as path:
        shutil.copyfile(work.paths.sequences, path)
        with duckdb.connect(path) as connection:
            connection.execute(
                "update sequences set items = items[:-2] || "
                "[(select min(item) from items as known where known.item <> sequences.items[-1])] "
                'where split = $test and "user" in (select distinct "user" from sequences order by 1 limit $users)',
                {"test": TEST, "users": users},
            )


@pytest.fixture
def third(shop: Work) -> Work:
    """The dataset with a promoted ranking that has every target at rank 3."""
    files.remove(shop.paths.promoted.root)
    assert promote(shop, lambda _: 3)["promoted"]
    return shop


def test_the_first_checkpoint_is_promoted_without_comparison(shop: Work) -> None:
    files.remove(shop.paths.promoted.root)
    stats = promote(shop, lambda _: 3)
    assert (stats["promoted"], stats["serves"], stats["ndcg@10"]) == (True, "text_only", 1 / log2(4))
    assert stats["verdict"] == "promoted: text_only serves; the first promotion, with nothing to compare it with"
    served = read_promotion(shop.paths.promoted)
    assert (served.number, served.method, served.score, served.comparison) == (1, "text_only", 0.5, None)
    assert (set(served.methods), served.towers) == ({"ease", "text_only"}, ("text_only",))


@pytest.mark.parametrize(
    ("rank_of", "passed"),
    [
        (lambda _: 1, True),  # better
        (lambda _: 3, True),  # equal
        (lambda n: 4 if n == 0 else 3, True),  # slightly worse: (57/58)^58 = 36 % of the resamples lack user 0
        (lambda n: 4 if n % 2 else 2, True),  # better as often as worse, and by more
        (lambda n: 4 if n % 2 else 3, False),  # worse for half of the users, better for none
        (lambda _: 20, False),  # much worse
    ],
)
def test_only_a_significantly_worse_checkpoint_is_refused(
    third: Work, rank_of: Callable[[int], int], passed: bool
) -> None:
    before = third.paths.promoted.manifest.read_bytes()
    stats = promote(third, rank_of)
    assert stats["promoted"] is passed
    assert (stats["pairs"], stats["old"]) == (USERS, 0.5)
    assert stats["new"] == pytest.approx(
        sum(1 / log2(1 + r) if r <= 10 else 0 for r in map(rank_of, range(USERS))) / USERS
    )
    assert stats["verdict"].startswith(
        "promoted: text_only serves: NDCG@10" if passed else "refused, as text_only is worse: NDCG@10"
    )
    assert ("PIXREC_PROMOTION__TOLERANCE=1 pixrec run shop --stage promoted" in stats["verdict"]) != passed
    assert (third.paths.promoted.manifest.read_bytes() == before) != passed


@pytest.mark.parametrize(("tolerance", "passed"), [(0.069, False), (0.07, True), (1, True)])
def test_the_tolerance_is_a_loss_that_may_pass(third: Work, tolerance: float, passed: bool) -> None:
    # Each user loses 1 / log2(4) - 1 / log2(5) = 0.0693, so that is both ends of the interval.
    assert promote(third, lambda _: 4, tolerance)["promoted"] is passed


@pytest.mark.parametrize(("changed", "passed"), [(28, False), (29, True), (58, True)])
def test_too_few_unchanged_users_decide_nothing(third: Work, changed: int, passed: bool) -> None:
    new_targets(third, changed)
    stats = promote(third, lambda _: 20)
    assert stats["promoted"] is passed
    words = f"only {USERS - changed} of {USERS} test users" if passed else f"30 of {USERS} test users"
    assert words in stats["verdict"]


def test_copies_are_kept_for_readers_comparisons_and_an_earlier_training(third: Work) -> None:
    paths = third.paths.promoted
    kept = []
    for promote_next in (promote, pipeline.refresh, pipeline.refresh, pipeline.refresh, promote, promote):
        promote_next(third, lambda _: 3) if promote_next is promote else promote_next(third)
        kept.append({int(path.name) for path in paths.root.iterdir() if path.is_dir()})
    assert kept == [{1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 4, 5}, {2, 5, 6}, {6, 7}]
    assert set(list_promotions(paths)) == kept[-1]


def test_a_damaged_measured_copy_decides_nothing(third: Work) -> None:
    """After a refresh, it is not the copy that serves."""
    pipeline.refresh(third)
    ranking = third.paths.promoted.copies(1).variant("text_only").ranking
    content = ranking.read_bytes()
    ranking.unlink()  # a hard link of others
    ranking.write_bytes(content[:-1] + b"x")
    with pytest.raises(ArtefactError, match=r"ranking\.parquet is damaged: its checksum is not that of the promotion"):
        promote(third, lambda _: 3)
    files.remove(third.paths.promoted.copies(1).root)
    with pytest.raises(
        ArtefactError, match=r"promoted/1, which was measured, has no ranking of text_only.*; restore it"
    ):
        promote(third, lambda _: 3)


def test_an_earlier_promotion_serves_again(third: Work) -> None:
    paths, history = third.paths.promoted, read_items(third.paths)[ITEM].to_list()[:3]
    live = LiveRecommender(third.paths, CandidateRules())
    assert live.refresh()
    first = live.current.for_items(history)
    shops.untrained(third, seed=1)
    for stage in (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX):
        stage.run(third)
    promote(third, lambda _: 3)
    assert live.refresh()
    assert live.current.for_items(history) != first
    assert pipeline.rollback(third, 1)["promotion"] == 1
    assert live.refresh()
    assert live.current.for_items(history) == first
    # What follows continues from promotion 1, and takes no number that is kept.
    assert pipeline.refresh(third)["promotion"] == 3
    assert (read_promotion(paths).measured, set(list_promotions(paths))) == (1, {1, 2, 3})
    assert pipeline.rollback(third, 2)["method"] == read_promotion(paths).method
    assert live.refresh()
    assert live.current.promotion.number == 2
    assert promote(third, lambda _: 4)["promoted"] is False, "compared with promotion 2"


def test_a_promotion_that_cannot_serve_again_is_named(third: Work) -> None:
    paths = third.paths.promoted
    promote(third, lambda _: 3)
    before = paths.manifest.read_bytes()
    with pytest.raises(QueryError, match=r"promotion 7 of shop is not kept in .*promoted; kept: 1, 2$"):
        pipeline.rollback(third, 7)
    (paths.root / "1" / "images.parquet").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"1/images\.parquet is damaged"):
        pipeline.rollback(third, 1)
    (paths.root / "1" / "promoted.json").write_text("{")
    with pytest.raises(QueryError, match=r"kept: 2$"):
        pipeline.rollback(third, 1)
    assert paths.manifest.read_bytes() == before


def test_a_later_training_does_not_change_what_serves(third: Work) -> None:
    folder = third.paths.promoted.root
    history = read_items(third.paths)[ITEM].to_list()[:3]
    before = Recommender.load(folder).for_items(history)
    shops.untrained(third, seed=1)
    for stage in (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING):
        stage.run(third)
    assert Recommender.load(folder).for_items(history) == before
    assert gate.promote_unless_worse("shop", third.dataset_settings, third.paths, ["text_only"])["pairs"] == USERS


def test_artefacts_of_two_trainings_are_not_promoted(third: Work) -> None:
    before = third.paths.promoted.manifest.read_bytes()
    shops.untrained(third, seed=1)
    with pytest.raises(
        ArtefactError,
        match=r"was built for another checkpoint.* run the stages `item_vectors` and `item_index` with --force",
    ):
        promote(third, lambda _: 1)
    assert third.paths.promoted.manifest.read_bytes() == before


def test_a_baseline_of_other_items_is_not_promoted(third: Work) -> None:
    folder = third.paths.baseline("ease").model
    load_model(folder).save(folder, catalogue_digest(read_items(third.paths)[ITEM] + "x"))
    with pytest.raises(ArtefactError, match=r"ease.model is of other items than the catalogue; run the stage `base"):
        promote(third, lambda _: 1)


def killed(root: Path) -> None:
    """Promote, and kill the process before it writes the manifest; for a separate process."""
    promotion.write_promotion = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    gate.promote_unless_worse("shop", DatasetSettings(source={"kind": "sample"}), DatasetPaths(root), ["text_only"])


def test_a_promotion_killed_before_its_manifest_leaves_the_served_copy(third: Work) -> None:
    folder = third.paths.promoted.root
    history = read_items(third.paths)[ITEM].to_list()[:3]
    before, manifest = Recommender.load(folder).for_items(history), (folder / "promoted.json").read_bytes()
    shops.untrained(third, seed=1)
    for stage in (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX):
        stage.run(third)
    rank(third, lambda _: 1)
    assert exit_code(killed, third.paths.root) == -signal.SIGKILL
    assert (
        folder / "2" / "variants" / "text_only" / "checkpoint" / "model.safetensors"
    ).exists()  # the copy was complete
    assert (folder / "promoted.json").read_bytes() == manifest
    assert Recommender.load(folder).for_items(history) == before
    (folder / "2" / "leftover").touch()
    assert promote(third, lambda _: 1)["promoted"]
    assert read_promotion(third.paths.promoted).number == 2
    assert not (folder / "2" / "leftover").exists()
    assert Recommender.load(folder).for_items(history) != before


@pytest.mark.parametrize("vision", ["trainable", "frozen"])
def test_a_promoted_folder_is_self_contained(tmp_path: Path, served: Work, vision: str) -> None:
    shutil.copytree(served.settings.root, tmp_path / "shop")
    work = shops.open_shop(tmp_path / "shop", "image_only", model={"vision": vision})
    for stage in (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING):
        shops.untrained(work) if stage is pipeline.ITEM_VECTORS else None
        stage.run(work)
    gate.promote_unless_worse("shop", work.dataset_settings, work.paths, ["image_only"])
    history = read_items(work.paths)[ITEM].to_list()[:3]
    before = Recommender.load(work.paths.promoted.root).for_items(history)
    elsewhere = work.paths.promoted.root.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "shop")
    assert Recommender.load(elsewhere).for_items(history) == before


@pytest.mark.parametrize(
    "name",
    [
        "variants/collaborative/checkpoint/model.safetensors", "variants/collaborative/item_index/index.faiss",
        "variants/collaborative/item_vectors/vectors.safetensors", "variants/collaborative/ranking.parquet",
        "sequences.duckdb", "images.parquet",
    ],
)  # fmt: skip
def test_a_damaged_copy_is_named_with_the_remedy(shop: Work, name: str) -> None:
    path = shop.paths.promoted.root / "1" / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    message = rf"1/{name} is damaged.* remove the folder .*promoted and promote again \(`pixrec run shop --stage"
    with pytest.raises(ArtefactError, match=message):
        Recommender.load(shop.paths.promoted.root)
    with pytest.raises(ArtefactError, match=message):
        promote(shop, lambda _: 1)


def test_a_missing_copy_is_named(shop: Work) -> None:
    (shop.paths.promoted.root / "1" / "images.parquet").unlink()
    with pytest.raises(ArtefactError, match=r"1/images\.parquet is missing \(No such.* remove the folder"):
        Recommender.load(shop.paths.promoted.root)


def test_a_file_that_is_not_of_the_promotion_is_named(shop: Work) -> None:
    extra = shop.paths.promoted.root / "1" / "variants" / "collaborative" / "checkpoint" / "adapter_config.json"
    extra.write_text("{}")
    with pytest.raises(ArtefactError, match=r"adapter_config\.json is not part of the promotion; remove it"):
        Recommender.load(shop.paths.promoted.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda listed: listed.clear(), "lists nothing of sequences.duckdb"),
        (lambda listed: listed.pop("images.parquet"), "lists nothing of images.parquet"),
        (
            lambda listed: [listed.pop(name) for name in list(listed) if name.startswith("baselines")],
            "lists nothing of baselines/ease",
        ),
        (lambda listed: listed.update({"../../x": ""}), "names '../../x', which is outside the folder"),
        (lambda listed: listed.update({"/etc/passwd": ""}), "names '/etc/passwd', which is outside the folder"),
    ],
)
def test_a_file_list_that_is_not_complete_is_an_error(shop: Work, change, message: str) -> None:
    manifest = files.read_json(shop.paths.promoted.manifest)
    change(manifest["files"])
    files.write_json(shop.paths.promoted.manifest, manifest)
    with pytest.raises(ArtefactError, match=rf"promoted\.json is damaged .*{message}.*promote again"):
        Recommender.load(shop.paths.promoted.root)


def test_a_manifest_that_is_a_folder_is_an_error(shop: Work) -> None:
    shop.paths.promoted.manifest.unlink()
    shop.paths.promoted.manifest.mkdir()
    for read in (lambda: Recommender.load(shop.paths.promoted.root), lambda: promote(shop, lambda _: 1)):
        with pytest.raises(ArtefactError, match=r"promoted\.json cannot be read \(Is a directory\); remove the folder"):
            read()


def test_a_missing_folder_of_what_serves_is_named(shop: Work) -> None:
    files.remove(shop.paths.promoted.root / "1")
    with pytest.raises(ArtefactError, match=r"promoted/1, which serves, does not exist; remove the folder"):
        Recommender.load(shop.paths.promoted.root)


@pytest.mark.parametrize(("content", "message"), [("{", "as a whole: "), ('{"number": 1}', "dataset: Field required")])
def test_a_damaged_manifest_is_named(shop: Work, content: str, message: str) -> None:
    shop.paths.promoted.manifest.write_text(content)
    with pytest.raises(ArtefactError, match=rf"promoted\.json is damaged \({message}.*promote again"):
        Recommender.load(shop.paths.promoted.root)


def test_loading_before_any_promotion_fails(shop: Work) -> None:
    files.remove(shop.paths.promoted.root)
    with pytest.raises(
        MissingArtefactError, match=r"nothing of shop has been promoted; run `pixrec run shop --up-to promoted`"
    ):
        Recommender.load(shop.paths.promoted.root)
    with pytest.raises(MissingArtefactError, match=r"nothing of shop has been promoted"):
        Recommender.load(shop.paths.root)


def test_the_folder_of_the_dataset_stands_for_that_of_the_promotion(shop: Work) -> None:
    assert Recommender.load(shop.paths.root).promotion == read_promotion(shop.paths.promoted)


@pytest.mark.parametrize(
    ("order", "scores", "users", "chosen"),
    [
        (["blend", "tower", "ease"], {"blend": 0.2, "tower": 0.1, "ease": 0.3}, 30, "ease"),
        (["blend", "tower", "ease"], {"blend": 0.2, "tower": 0.2, "ease": 0.2}, 30, "blend"),
        (["tower", "ease"], {"tower": 0.1, "ease": 0.3}, 29, "tower"),
        (["tower", "ease"], {"ease": 0.0}, 30, "ease"),
        (["blend", "tower", "ease"], {"tower": 0.1, "ease": 0.3}, 30, "ease"),
        (["blend", "tower", "ease"], {"tower": 0.1, "ease": 0.3}, 29, "tower"),
    ],
)
def test_the_best_on_validation_serves_if_enough_users_were_measured(order, scores, users, chosen) -> None:
    assert gate.sort_methods(order, scores, users)[0] == chosen


def write_ease(work: Work, rank_of: Callable[[int], int]) -> None:
    """Write the test ranking of EASE by hand."""
    before = work.variant_paths.ranking.read_bytes()
    rank(work, rank_of)
    for path, body in (
        (work.paths.baseline("ease").ranking, work.variant_paths.ranking.read_bytes()),
        (work.variant_paths.ranking, before),
    ):
        with files.replacing(path) as temporary:
            temporary.write_bytes(body)


def test_a_method_ahead_of_the_served_one_is_a_warning(third: Work) -> None:
    write_ease(third, lambda _: 1)
    (warning,) = promote(third, lambda _: 3)["warnings"]
    assert warning.startswith(
        "warning: ease is ahead of the served text_only by NDCG@10 +0.5000, "
        "95 % interval +0.5000 to +0.5000, on 58 test"
    )
    write_ease(third, lambda n: 1 if n == 0 else 3)
    assert promote(third, lambda _: 3)["warnings"] == [], "(57/58)^58 = 36 % of the resamples lack user 0"


def test_a_refused_promotion_compares_methods_with_what_serves(third: Work) -> None:
    write_ease(third, lambda _: 1)
    stats = promote(third, lambda _: 20)
    assert (stats["promoted"], stats["serves"]) == (False, "text_only")
    assert stats["warnings"][0].startswith("warning: ease is ahead of the served text_only by NDCG@10 +0.5000")
    assert read_promotion(third.paths.promoted).number == 1


def test_a_recommender_whose_folder_was_replaced_says_so(third: Work) -> None:
    recommender = Recommender.load(third.paths.promoted.root)
    for _ in range(2):
        promote(third, lambda _: 3)
    with pytest.raises(ArtefactError, match="later promotions have replaced it; load the recommender again"):
        recommender.method("ease")


def test_readers_under_twenty_promotions_see_a_complete_promotion_each_time(third: Work) -> None:
    """Two readers load without a pause while another process promotes; copies vanish under them."""
    folder = third.paths.promoted.root
    history = read_items(third.paths)[ITEM].to_list()[:3]
    expected = Recommender.load(folder).for_items(history)
    last, numbers, errors = 20, set[int](), list[Exception]()

    def read() -> None:
        while not errors and max(numbers, default=0) < last:
            try:
                recommender = Recommender.load(folder)
                assert recommender.for_items(history) == expected
                numbers.add(recommender.promotion.number)
            except Exception as error:
                errors.append(error)

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        try:
            copies = folder / "1"
            for number in range(2, last + 1):
                promoted = read_promotion(third.paths.promoted)
                shutil.copytree(copies, folder / str(number))
                fields = promoted.model_dump(exclude={"promoted_at", "files"}) | {"number": number}
                promotion.write_promotion(third.paths.promoted, third.paths.promoted.copies(number), fields)
                files.remove(folder / str(number - 1))  # earlier than `write_promotion` does
                copies = folder / str(number)
        except Exception as error:
            errors.append(error)
        for each in reading:
            each.result()
    assert errors == []
    assert last in numbers
