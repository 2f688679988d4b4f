"""Columns: which names of columns mean a field of a task. Light: it imports no framework."""

SAME_MEANING = {
    "text": (
        "sentence",
        "sentence1",
        "document",
        "review",
        "content",
        "comment",
        "utterance",
        "premise",
        "문장",
        "리뷰",
    ),
    "text_pair": ("sentence2", "hypothesis", "text2"),
    "label": ("labels", "class", "category", "sentiment", "intent", "stars", "rating", "라벨"),
    "tokens": ("words",),
    "tags": ("ner_tags", "labels", "ner"),
    "question": ("query", "질문"),
    "context": ("passage", "paragraph", "본문"),
    "answers": ("answer",),
    "source": ("src", "article", "document", "dialogue", "text", "body"),
    "target": ("tgt", "summary", "highlights", "abstract", "headline"),
}
"""Columns that are taken for a field where no column has the field's name."""
