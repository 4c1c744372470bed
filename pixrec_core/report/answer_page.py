"""The answer to one query as a self-contained HTML page with pictures."""

from pixrec_core.data.decoding import decode_photo
from pixrec_core.paths import DatasetPaths
from pixrec_core.report.answer import Answer
from pixrec_core.report.pictures import HISTORY_SHOWN, THUMBNAIL_SIZE, Album, data_uri
from pixrec_core.report.tables import method_title, render_template


def as_html(answer: Answer, paths: DatasetPaths) -> str:
    """The answer as a page with the photos of the dataset at `paths`."""
    album, promotion, query = Album(paths, answer.titles), answer.recommender.promotion, answer.query
    photo = decode_photo(query.photo, THUMBNAIL_SIZE, promotion.max_pixels) if query.kind == "photo" else None
    seen = set(answer.history)
    context = {
        "promotion": promotion,
        "method": method_title(answer.method),
        "query": query,
        "photo": data_uri(photo) if photo else None,
        "history": [album.tile(item) for item in answer.history[-HISTORY_SHOWN:]],
        "earlier": max(0, len(answer.history) - HISTORY_SHOWN),
        "recommendations": [album.tile(each.item, seen=each.item in seen) for each in answer.recommendations],
        "rows": answer.rows(),
    }
    return render_template("answer.html", context)
