"""Requests to a real server, compared with the recommender itself."""

import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import polars as pl
import pytest
from PIL import Image

from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.schemas import HAS_IMAGE, ITEM, ITEMS, TEST, TRAIN_COUNT, USER
from pixrec_core.serving import gate
from pixrec_core.serving.recommender import Recommender
from pixrec_core.serving.server.live import LiveRecommender
from pixrec_core.settings import CandidateRules
from tests.core.serving.server.conftest import running_server

USER_ENCODERS = ("items",)  # what is tested here does not read them


@pytest.fixture(scope="module")
def bought(served):
    return dict(read_sequences(served.paths, TEST).select(USER, ITEMS).rows())


def items_of(response):
    assert response.status_code == 200, response.text
    return [each["item"] for each in response.json()["items"]]


def ids(recommendations):
    return [each.item for each in recommendations]


def test_answers_are_those_of_the_recommender(client, recommender, bought):
    user, history = next(iter(bought.items()))
    answer = client.recommend(user=user, top=5).json()
    assert [each["item"] for each in answer["items"]] == ids(recommender.for_user(user, 5))
    assert (answer["method"], answer["history_length"]) == (recommender.promotion.method, len(history))
    rules = {"filter_seen": True, "deny": [answer["items"][0]["item"]]}
    expected = recommender.for_items(history, 7, method="ease", rules=CandidateRules(**rules))
    assert items_of(client.recommend(items=history, top=7, method="ease", rules=rules)) == ids(expected)
    assert items_of(client.recommend(text="red hat", top=4)) == ids(recommender.for_text("red hat", 4))
    assert items_of(client.get("/datasets/shop/items/similar", params={"id": history[0], "top": 3})) == ids(
        recommender.similar_items(history[0], 3)
    )


def test_the_blend_reads_whether_it_is_the_same_visit(blended):
    recommender = Recommender.load(blended.paths.promoted.root)
    user = recommender.find_users("", 1)[0]
    history = recommender.history(user)
    with running_server(blended.settings.data_dir) as client:
        for question in ({"user": user}, {"items": history}):
            whole = {same: items_of(client.recommend(**question, top=60, same_visit=same)) for same in (True, False)}
            assert whole[True] != whole[False]
            assert items_of(client.recommend(**question, top=60)) == whole[False]
        assert whole[True] == ids(recommender.for_items(history, 60, same_visit=True))
        assert (
            client.post("/datasets/shop/recommend/batch", json={"users": [user], "top": 60, "same_visit": True}).json()[
                "answers"
            ][0]["items"]
            == client.recommend(user=user, top=60, same_visit=True).json()["items"]
        )


def test_a_batch_answers_like_single_requests(client, bought):
    users = [*list(bought)[:3], "nobody"]
    batch = client.post("/datasets/shop/recommend/batch", json={"users": users, "top": 4, "method": "ease"}).json()
    single = [client.recommend(user=user, top=4, method="ease").json() for user in users]
    assert batch["answers"] == single
    histories = [bought[users[0]], []]
    batch = client.post("/datasets/shop/recommend/batch", json={"histories": histories, "top": 4}).json()
    assert batch["answers"] == [client.recommend(items=history, top=4).json() for history in histories]


def test_an_unknown_user_gets_the_popularity_order_and_unknown_items_are_skipped(client, recommender, bought):
    popular = recommender.catalogue.sort(TRAIN_COUNT, ITEM, descending=[True, False])[ITEM].head(10).to_list()
    answer = client.recommend(user="nobody").json()
    assert ([each["item"] for each in answer["items"]], answer["history_length"]) == (popular, 0)
    history = next(iter(bought.values()))
    answer = client.recommend(items=["new item", *history]).json()
    assert (answer["unknown_items"], answer["history_length"]) == (["new item"], len(history))
    assert answer["items"] == client.recommend(items=history).json()["items"]


def test_reasons_name_the_nearest_item_and_the_ranks(client, recommender, bought):
    history = next(iter(bought.values()))
    answer = client.recommend(items=history, explain=True, top=3).json()
    vectors, items = recommender.tower().retriever.item_index.vectors, recommender.catalogue[ITEM].to_list()
    for rank, each in enumerate(answer["items"], start=1):
        cosines = {item: float(vectors[items.index(item)] @ vectors[items.index(each["item"])]) for item in history}
        assert each["why"]["similarity"] == pytest.approx(max(cosines.values()), abs=1e-5)
        assert cosines[each["why"]["nearest"]] == pytest.approx(max(cosines.values()), abs=1e-5)
        assert each["why"]["ranks"] == {answer["method"]: rank}


def test_photos_in_and_out(client, recommender, served):
    item = recommender.catalogue.filter(HAS_IMAGE)[ITEM][0]
    photo = client.get("/datasets/shop/items/photo", params={"id": item})
    assert photo.content == served.paths.image(item).read_bytes()
    assert photo.headers["content-type"] == "image/jpeg"
    found = client.post(
        "/datasets/shop/recommend/photo?top=3", data=photo.content, headers={"Content-Type": "image/jpeg"}
    )
    assert items_of(found) == ids(recommender.for_photo(photo.content, 3))
    broken = client.post("/datasets/shop/recommend/photo", data=b"no photo")
    assert broken.status_code == 422
    assert "the photo cannot be used" in broken.json()["detail"]
    assert client.get("/datasets/shop/items/photo", params={"id": "../../secret"}).status_code == 404


def test_items_and_users_can_be_found(client, recommender, bought):
    titles = recommender.catalogue.sort(TRAIN_COUNT, ITEM, descending=[True, False])
    assert [each["item"] for each in client.get("/datasets/shop/items?limit=3").json()] == titles[ITEM].head(
        3
    ).to_list()
    word = titles["title"][0].split()[0]
    found = client.get("/datasets/shop/items", params={"search": word.upper()}).json()
    assert found
    assert all(word.lower() in each["title"].lower() for each in found)
    assert client.get("/datasets/shop/items", params={"search": f"{word} {word[1:]}"}).json() == found
    assert client.get("/datasets/shop/items", params={"search": "a " * 101}).status_code == 422
    assert client.get("/datasets/shop/users?limit=2").json() == sorted(recommender.find_users("", 1000))[:2]
    user, history = next(iter(bought.items()))
    assert [each["item"] for each in client.get("/datasets/shop/users/history", params={"id": user}).json()] == history


def test_what_serves(client, recommender):
    (info,) = client.get("/datasets").json()
    promotion = recommender.promotion
    assert (info["dataset"], info["method"], info["promotion"]) == ("shop", promotion.method, promotion.number)
    assert set(info["methods"]) == set(promotion.methods)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True, "missing": {}}


def test_the_openapi_description_has_examples_that_work(client):
    description = client.get("/openapi.json").json()
    for name in ("Question", "Batch"):
        for example in description["components"]["schemas"][name]["examples"]:
            path = "/datasets/shop/recommend" + ("/batch" if name == "Batch" else "")
            assert client.post(path, json=example).status_code == 200, example


@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ({}, 422, "exactly one of user, items and text"),
        ({"user": "a", "text": "b"}, 422, "exactly one of user, items and text"),
        ({"items": ["a"], "times": [1, 2]}, 422, "one time per item"),
        ({"items": [], "times": [10**30]}, 422, "less than or equal to"),
        ({"user": "a", "method": "nope"}, 422, "unknown method 'nope'; promoted of shop: collaborative, ease"),
        ({"user": "a", "top": 0}, 422, "greater than or equal to 1"),
        ({"user": "a", "top": 5000}, 422, "at most 1,000 (server.max_top)"),
        ({"user": "a", "rules": {"allow": ["nope"]}}, 422, "rule `allow`: unknown item 'nope'"),
        ({"user": "a", "rules": {"colour": "red"}}, 422, "Extra inputs are not permitted"),
    ],
)
def test_wrong_questions(client, question, status, message):
    answer = client.recommend(**question)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


def test_times_that_decrease_are_refused(client, recommender):
    answer = client.recommend(items=recommender.catalogue[ITEM][:2].to_list(), times=[2, 1])
    assert (answer.status_code, "oldest first" in answer.text) == (422, True), answer.text


def test_a_history_in_a_batch_is_limited_as_a_single_one(client):
    answer = client.post("/datasets/shop/recommend/batch", json={"histories": [["a"] * 10_001]})
    assert (answer.status_code, "at most 10000 items" in answer.text) == (422, True), answer.text


def test_an_unknown_dataset_is_named(client):
    answer = client.post("/datasets/nope/recommend", json={"user": "a"})
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown dataset 'nope'; served: shop")


def test_a_host_name_of_another_site_is_refused(client):
    assert client.get("/datasets", headers={"Host": "attacker.example"}).status_code == 400


def test_metrics_name_routes_and_no_ids(client):
    client.recommend(user="secret-user-id")
    text = client.get("/metrics").text
    assert 'route="/datasets/{dataset}/recommend",status="200"' in text
    assert 'pixrec_promotion{dataset="shop"} 1.0' in text
    assert 'pixrec_unknown_total{kind="user"}' in text
    assert "secret-user-id" not in text


def test_a_token_guards_all_data(served):
    with running_server(served.settings.data_dir, token="a long secret") as client:
        for path in ("/datasets", "/metrics", "/datasets/shop/users", "/datasets/shop/items/photo?id=x"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.recommend(user="a").status_code == 401
        assert client.get("/datasets", headers={"Authorization": "Bearer a long secret"}).status_code == 200
        assert [client.get(path).status_code for path in ("/", "/health", "/ready")] == [200] * 3
    with running_server(served.settings.data_dir, token="geheimes Wörtchen") as client:
        headers = {"Authorization": "Bearer geheimes Wörtchen".encode()}
        assert client.get("/datasets", headers=headers).status_code == 200


def test_a_large_body_is_refused_also_without_a_length(served):
    with running_server(served.settings.data_dir, max_body_bytes=1000) as client:
        for body in (b"x" * 1001, (b"x" * 400 for _ in range(3))):
            answer = client.post("/datasets/shop/recommend/photo", data=body)
            assert answer.status_code == 413
            assert "server.max_body_bytes" in answer.text


def test_slow_and_too_many_requests_are_refused(served, monkeypatch):
    release, entered = threading.Event(), threading.Semaphore(0)

    def wait(*_, **__):
        entered.release()
        release.wait()
        return []

    monkeypatch.setattr(Recommender, "for_text", wait)
    with (
        running_server(served.settings.data_dir, threads=1, max_waiting=1) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.recommend, text="a")
        entered.acquire()
        others = [pool.submit(client.recommend, text=text) for text in "bc"]  # one of them waits, whichever comes first
        refused = next(as_completed(others)).result()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/health").status_code == 200
        release.set()
        assert sorted(each.result().status_code for each in (first, *others)) == [200, 200, 503]


def test_a_request_past_the_time_limit_gets_504(served, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(Recommender, "for_text", lambda *_, **__: release.wait() and [])
    with running_server(served.settings.data_dir, timeout_s=0.05) as client:
        answer = client.recommend(text="a")
        release.set()
    assert (answer.status_code, answer.json()["detail"]) == (504, "no answer within 0.05 s (server.timeout_s)")


def test_a_request_past_the_time_limit_keeps_its_thread(served, monkeypatch):
    """Otherwise a server with too much work would start more and more of it."""
    release, computed = threading.Event(), []
    monkeypatch.setattr(Recommender, "for_text", lambda *_, **__: computed.append(release.wait()) or [])
    with running_server(served.settings.data_dir, threads=1, max_waiting=2, timeout_s=0.05) as client:
        assert [client.recommend(text="a").status_code for _ in range(5)] == [504, 504, 504, 503, 503]
        release.set()
        while client.recommend(text="a").status_code != 200:
            pass
    assert len(computed) == 2, "the first and the last; nobody waited for the others"


def test_two_requests_may_meet_the_same_replaced_copy(served, monkeypatch):
    """The second one finds that the first has loaded the new promotion."""
    replaced = []

    def answer(recommender, *_, **__):
        if not replaced or recommender is replaced[0]:
            replaced[:] = [recommender]
            raise ArtefactError("later promotions have replaced it")
        return []

    def refresh(live):
        live.current = Recommender.load(live.paths.promoted.root)  # by the first request
        return False

    with running_server(served.settings.data_dir, reload_s=3600) as client:
        monkeypatch.setattr(Recommender, "for_text", answer)
        monkeypatch.setattr(LiveRecommender, "refresh", refresh)
        assert client.recommend(text="a").status_code == 200


def test_a_dataset_without_promotion_is_not_ready_until_it_has_one(shop):
    promoted = shop.paths.promoted.root
    promoted.rename(promoted.with_name("later"))
    with running_server(shop.settings.data_dir) as client:
        answer = client.get("/ready")
        assert (answer.status_code, "nothing of shop has been promoted" in answer.text) == (503, True)
        assert client.recommend(user="a").status_code == 503
        promoted.with_name("later").rename(promoted)
        while client.get("/ready").status_code != 200:
            pass
        assert client.recommend(user="a").status_code == 200


def test_twenty_promotions_under_load_fail_no_request(shop, bought):
    """As many requests as the server answers would take most of the time: each promotion allows some more."""
    users, allowed, stop = list(bought), threading.Semaphore(0), threading.Event()

    def ask(client, n):
        seen = set()
        while allowed.acquire() and not stop.is_set():
            answer = client.recommend(user=users[n], top=5, method=["ease", "text_only", None][n % 3])
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["items"]) == 5
            seen.add(answer.json()["promotion"])
        return seen

    with running_server(shop.settings.data_dir) as client, ThreadPoolExecutor() as pool:
        readers = [pool.submit(ask, client, n) for n in range(4)]
        try:
            for _ in range(20):
                allowed.release(20)
                gate.promote_unless_worse("shop", shop.dataset_settings, shop.paths, ["collaborative", "text_only"])
        finally:
            stop.set()
            allowed.release(len(readers))
        numbers = set().union(*(reader.result() for reader in readers))
        while client.recommend(user=users[0]).json()["promotion"] != 21:
            pass
        assert 'pixrec_promotion{dataset="shop"} 21.0' in client.get("/metrics").text
    assert len(numbers) > 1


def test_metrics_name_a_promotion_before_it_serves(served):
    live, serving_meanwhile = LiveRecommender(served.paths, CandidateRules()), []
    live.watch(lambda _: serving_meanwhile.append(live.current))
    assert live.refresh()
    assert serving_meanwhile == [None]
    assert live.current is not None


def test_answers_are_logged_if_asked(shop, bought):
    user = next(iter(bought))
    with running_server(shop.settings.data_dir, log_answers=True) as client:
        answer = client.recommend(user=user, top=3)
        client.post("/datasets/shop/recommend/batch", json={"users": [f"{user}  ", "nobody"], "top": 2})
        client.recommend(text="secret words", top=1)
        client.recommend(user=" ", top=1)
    (path,) = shop.paths.online.glob("shown-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["user"] for line in lines] == [user, user, "nobody", None, None]
    assert lines[0]["items"] == items_of(answer)
    assert lines[0]["promotion"] == 1
    assert "secret words" not in path.read_text()


def test_answers_are_sent_even_if_the_log_cannot_be_written(shop, bought, caplog):
    shop.paths.online.write_text("a file in place of the folder")
    with running_server(shop.settings.data_dir, log_answers=True) as client:
        assert client.recommend(user=next(iter(bought))).status_code == 200
    assert "answers are sent without being logged" in caplog.text


PROCESS = """
import sys
from pixrec_core.serving.server.app import Metrics
metrics = Metrics()
metrics.promotion.labels("shop").set(int(sys.argv[1]))
print(metrics.text().decode())
"""


def test_a_process_that_has_ended_reports_no_promotion(tmp_path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROCESS]
    subprocess.run([*command, "1"], env=environment, check=True, capture_output=True)
    second = subprocess.run([*command, "2"], env=environment, check=True, capture_output=True, text=True)
    assert 'pixrec_promotion{dataset="shop"} 2.0' in second.stdout


def test_photo_formats_are_those_of_the_recommender(client):
    file = io.BytesIO()
    photo = Image.new("RGB", (40, 30), "red")
    photo.paste("white", (0, 0, 20, 20))  # a photo of one colour is a placeholder
    photo.save(file, "WEBP")
    assert len(items_of(client.post("/datasets/shop/recommend/photo?top=2", data=file.getvalue()))) == 2


def test_rules_of_the_settings_hold(served, recommender):
    first = recommender.for_items([], 1)[0].item
    with running_server(served.settings.data_dir, CandidateRules(deny=(first,))) as client:
        assert first not in items_of(client.recommend(items=[], top=100))


def test_titles_and_facts_come_with_the_items(client, recommender):
    item = client.recommend(items=[], top=1).json()["items"][0]
    row = recommender.catalogue.filter(pl.col(ITEM) == item["item"]).row(0, named=True)
    assert (item["title"], item["price"], item["photo"]) == (row["title"], row["price"], row[HAS_IMAGE])
