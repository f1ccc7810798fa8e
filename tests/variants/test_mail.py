"""E-mails become text, and copies of one mailing are told."""

from email.message import EmailMessage

import pytest

from variants.mail import body_text, near_duplicates

PLAIN = "From ilug@linux.ie  Tue Aug  6 11:51:02 2002\nSubject: Viagra\n\nSee you\n  at noon.\n"


def message(*parts: tuple[str, str], charset: str = "utf-8", encoding: str = "base64") -> str:
    mail = EmailMessage()
    mail["Subject"] = "left out"
    (text, kind), *others = parts
    mail.set_content(text, subtype=kind, charset=charset, cte=encoding)
    for other, subtype in others:
        mail.add_alternative(other, subtype=subtype, charset=charset)
    return mail.as_string()


def test_headers_are_stripped_and_space_is_even() -> None:
    assert body_text(PLAIN) == "See you at noon."


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_bodies_are_decoded(charset: str, encoding: str) -> None:
    assert (
        body_text(message(("Käse für alle", "plain"), charset=charset, encoding=encoding)) == "Käse für alle"
    )


def test_markup_is_left_out_and_the_plain_part_preferred() -> None:
    page = "<html><style>p {}</style><body>Buy <b>now</b> &amp; save<!-- x > y --><script>f()</script></body>"
    assert body_text(message((page, "html"))) == "Buy now & save"
    assert body_text(message(("as text", "plain"), (page, "html"))) == "as text"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Subject: nothing\n\n", ""),
        ("", ""),
        ('Content-Type: text/plain; charset="none-such"\n\nyes', "yes"),
        ("Content-Type: image/png\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=", ""),
    ],
)
def test_odd_messages_break_nothing(raw: str, text: str) -> None:
    assert body_text(raw) == text


def test_copies_share_a_group_and_others_do_not() -> None:
    mailing = " ".join(f"word{number}" for number in range(80))
    texts = [
        mailing,
        mailing.replace("word40", "Dear Ann"),
        "See you at noon.",
        mailing.upper() + " END",
        "Hi",
    ]
    groups = near_duplicates(texts)
    assert groups[0] == groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3
    assert (near_duplicates(texts) == groups).all()


def test_texts_without_words_are_taken() -> None:
    assert len(near_duplicates(["", "...", "a"])) == 3
