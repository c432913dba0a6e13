"""Recommendations and outcomes as Block Kit. Pure: rows in, JSON out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from slack_sdk.models.blocks import (
    ActionsBlock,
    Block,
    ButtonElement,
    ConfirmObject,
    ContextBlock,
    DividerBlock,
    HeaderBlock,
    MarkdownTextObject,
    PlainTextObject,
    SectionBlock,
)

from actuators.shape import Shape, difference
from agent.brief import tag_lines
from analyzers.policy import RuleVerdict
from analyzers.prediction import Interval
from analyzers.words import between, dollars, figure, heading, phrase, promise, verdict, wording

Row = Mapping[str, Any]
#: The button of `flyball slack test`, which decides nothing.
TEST_ACTION = "flyball_test"
#: Characters. Slack takes 3000 in a section, but refuses a message whose blocks together hold about 13,000: msg_blocks_too_long.
_SECTION, _CONTEXT, _HEADER = 2400, 1500, 150
#: Things to do that a report's message names.
_TASKS = 5


def recommendation(
    row: Row, tokens: Mapping[str, str] | None, page_url: str, rules: Sequence[RuleVerdict] = ()
) -> dict[str, Any]:
    """The message of one recommendation. Without ``tokens`` it carries no buttons, and says where to decide.

    rules: what the guardrails say of it now; those that allow it are counted, the others told.
    """
    body = row["body"]
    endpoint, current, proposed = body["endpoint"], body["current"], body["proposed"]
    what = _what(body)
    title = f"{endpoint}: {what}"
    blocks: list[Block] = [
        HeaderBlock(text=PlainTextObject(text=_cut(title, _HEADER))),
        _section(
            f"{_verb(body['direction']).capitalize()} is proposed.\n*Now:* {_escape(_label(current))}\n*Proposed:* {_escape(_label(proposed))}"
        ),
        _section("*Why*\n" + "\n".join(f"• {_escape(r['text'])}" for r in body["reasons"])),
        _section("*Expected*\n" + _expected(body.get("observed", ()), proposed)),
        _section(
            f"*Money:* {_money(row)}\n*Risk:* {body['risk']}"
            + "".join(f"\n• {_escape(t)}" for t in body["risk_reasons"])
            + (f"\n*Pre-mortem:* {_escape(tried['text'])}" if (tried := body.get("premortem")) else "")
            + (f"\n*Reference:* it {_escape(beside['text'])}" if (beside := body.get("reference")) else "")
        ),
    ]
    if rules:
        blocks.append(_section(f"*Guardrails:* {_guardrails(rules)}"))
    if tokens:
        blocks.append(_buttons(row, tokens))
    until = datetime.fromtimestamp(row["expires_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = [
        f"Plan `{row['plan_hash'][:19] or 'none: Flyball can only read this system'}`",
        f"until {until}",
        f"revision {row['revision']}",
    ]
    if not tokens or "approve" not in tokens:
        foot.append(f"`flyball recommendations show {row['id']}`")
    foot.append(f"<{page_url}/recommendations/{row['id']}|details>")
    blocks += [DividerBlock(), ContextBlock(elements=[MarkdownTextObject(text=_cut(" · ".join(foot), _CONTEXT))])]
    return {
        "text": _cut(_escape("; ".join([title, _saves(row), *_first_target(body)])), _SECTION),
        "blocks": [b.to_dict() for b in blocks],
    }


def decided(row: Row, who: str | None, what: str, page_url: str) -> dict[str, Any]:
    """What the message becomes once it is decided: what it was about, why, and no buttons. who: a Slack user id."""
    body = row["body"]
    lines = [f"*{_escape(body['endpoint'])}*: {_escape(_what(body))}", f"{_saves(row)}; risk {body['risk']}"]
    lines += [f"• {_escape(r['text'])}" for r in body["reasons"][:1]]
    text = f"{what} by <@{who}>" if who else _escape(what)
    foot = _cut(f"{text} · <{page_url}/recommendations/{row['id']}|details>", _CONTEXT)
    blocks = [_section("\n".join(lines)), ContextBlock(elements=[MarkdownTextObject(text=foot)])]
    return {"text": _cut(_escape(f"{body['endpoint']}: {what}"), _SECTION), "blocks": [b.to_dict() for b in blocks]}


def refused(why: str) -> dict[str, Any]:
    """What only the one who pressed sees, when the click decided nothing."""
    return {
        "response_type": "ephemeral",
        "replace_original": False,
        "text": _cut(_escape(f"Not done: {why}."), _SECTION),
    }


def trial(token: str | None) -> dict[str, Any]:
    """The message of `flyball slack test`. token: what its button carries; None: it has none."""
    text = "A trial by `flyball slack test`: it proposes nothing."
    blocks: list[Block] = [_section(text)]
    if token is not None:
        button = ButtonElement(text="It works", action_id=TEST_ACTION, value=token, style="primary")
        blocks.append(ActionsBlock(elements=[button]))
    return {"text": text, "blocks": [b.to_dict() for b in blocks]}


_NOTICE = {
    "breach": "objective missed",
    "contradiction": "something contradicts itself",
    "regression": "the engine became slower",
    "ENGINE_IMPROVED": "the engine became faster",
}


def finding(row: Row, decision: Row | None, page_url: str) -> dict[str, Any]:
    """What is wrong at an endpoint, where nothing is proposed: and why not."""
    endpoint, body = row["endpoint"], row["body"]
    lines = [_escape(body["text"])]
    if body.get("cause"):
        lines.append(f"*Whose it is:* {_escape(body['cause']['text'])}")
    if decision is not None and decision["text"] and decision["text"] != body["text"]:
        lines.append(f"*What Flyball makes of it:* {_escape(decision['text'])}")
    title = f"{endpoint}: {_NOTICE.get(body['code'], _NOTICE[body['kind']])}"
    blocks: list[Block] = [
        HeaderBlock(text=PlainTextObject(text=_cut(title, _HEADER))),
        _section("\n".join(lines)),
        ContextBlock(
            elements=[MarkdownTextObject(text=f"{body['code']} · <{page_url}/endpoints/{endpoint}|evidence>")]
        ),
    ]
    return {"text": _cut(_escape(f"{title}: {body['text']}"), _SECTION), "blocks": [b.to_dict() for b in blocks]}


_ENDED = {
    "succeeded": "change verified",
    "rolled_back": "change rolled back; the endpoint is frozen until a person unfreezes it",
    "failed": "change failed; the endpoint is frozen until a person unfreezes it",
}


def change(row: Row, ledger: Sequence[Row], page_url: str) -> dict[str, Any]:
    """How a change ended, or how it stands where somebody has set it going again since."""
    what = _ENDED.get(row["state"], f"change is {str(row['state']).replace('_', ' ')} again")
    plan = row["plan"]
    shapes = f"{Shape.from_dict(plan['before']).label()} → {Shape.from_dict(plan['after']).label()}"
    lines = [
        _kept(s) for s in ledger if s["observed"] is not None and s["metric"].endswith("_s") and "_p95" in s["metric"]
    ]
    blocks: list[Block] = [
        HeaderBlock(text=PlainTextObject(text=_cut(f"{row['endpoint']}: {what}", _HEADER))),
        _section(f"{_escape(shapes)}\n{_escape(row['state_reason'])}"),
    ]
    if lines:
        blocks.append(_section("*Promised and observed*\n" + "\n".join(lines)))
    foot = f"<{page_url}/changes/{row['id']}|journal and evidence>"
    blocks.append(ContextBlock(elements=[MarkdownTextObject(text=foot)]))
    return {"text": f"{row['endpoint']}: {what}", "blocks": [b.to_dict() for b in blocks]}


_RESTORED = {
    "AS_BEFORE": "after the way back it is as it was before",
    "WORSE": "after the way back it is worse than before the change",
    "BLIND": "after the way back nobody sees how it is",
}


def way_back(row: Row, page_url: str) -> dict[str, Any]:
    """What an endpoint shows since a change was undone."""
    told = row["outcome"]["way_back"]
    what = _RESTORED[told["code"]]
    foot = f"<{page_url}/changes/{row['id']}|journal and evidence>"
    blocks: list[Block] = [
        _section(f"*{_escape(row['endpoint'])}: {what}*\n{_escape(told['text'])}"),
        ContextBlock(elements=[MarkdownTextObject(text=foot)]),
    ]
    return {"text": f"{row['endpoint']}: {what}", "blocks": [b.to_dict() for b in blocks]}


def _kept(s: Row) -> str:
    metric, name = s["metric"], wording(s["metric"])
    came = between(metric, s["observed"], s["observed_low"], s["observed_high"])
    if s["low"] is None:
        return f"• {name}: came {came}; nothing was promised"
    promised = f"{figure(metric, s['low'])} to {figure(metric, s['high'])}"
    return f"• {name}: promised {promised}, came {came}: {promise(s['comparable'], s['inside'])}"


def report(row: Row, page_url: str) -> dict[str, Any]:
    """The week's three sentences and numbers, what to do, and where the whole report is."""
    first = row["summary"]["brief"]
    title = f"Flyball, {first['title']}"
    numbers = "\n".join(f"*{_escape(n['value'])}* {_escape(n['what'])}" for n in first["numbers"])
    tasks = [
        f"• *{_escape(t['endpoint'] or 'Flyball')}*: {_escape(t['what'])} ({_escape(t['waiting_costs'])})"
        for t in first["tasks"]
    ]
    more, whose = len(tasks) - _TASKS, tag_lines(first)
    blocks: list[Block] = [
        HeaderBlock(text=PlainTextObject(text=_cut(title, _HEADER))),
        _section(_escape(" ".join(first["sentences"]))),
        _section(numbers),
        _section(
            "*What to do*\n" + "\n".join(tasks[:_TASKS] or ["Nothing."]) + (f"\nand {more} more" if more > 0 else "")
        ),
        *([_section("*Whose it was*\n" + "\n".join(f"• {_escape(line)}" for line in whose))] if whose else []),
        ContextBlock(elements=[MarkdownTextObject(text=f"<{page_url}/reports|the whole report>")]),
    ]
    return {
        "text": _cut(_escape(f"{title}: {first['sentences'][0]}"), _SECTION),
        "blocks": [b.to_dict() for b in blocks],
    }


def _buttons(row: Row, tokens: Mapping[str, str]) -> ActionsBlock:
    asked = f"{row['body']['endpoint']}: {_what(row['body'])}; {_saves(row)}"
    sure = ConfirmObject(
        title="Apply this change?",
        text=PlainTextObject(text=_cut(asked, 290)),
        confirm="Apply",
        deny="Not yet",
    )
    approve = None
    if "approve" in tokens:
        approve = ButtonElement(
            text="Approve",
            action_id="flyball_approve",
            value=tokens["approve"],
            style="primary",
            confirm=sure,
        )
    return ActionsBlock(
        block_id=f"flyball-{row['id']}-{row['revision']}",
        elements=[
            *([approve] if approve is not None else ()),
            ButtonElement(text="Reject", action_id="flyball_reject", value=tokens["reject"], style="danger"),
            ButtonElement(text="Snooze a day", action_id="flyball_snooze", value=tokens["snooze"]),
        ],
    )


def _guardrails(rules: Sequence[RuleVerdict]) -> str:
    told = [f"• {v.verdict}: {_escape(v.text)}" for v in rules if v.verdict != "yes"]
    kept = f"{len(rules) - len(told)} of {len(rules)} allow it now"
    return "\n".join([kept, *told])


def _expected(observed: Sequence[Mapping[str, Any]], proposed: Mapping[str, Any]) -> str:
    """Of each target what it is now, as observed, and what is predicted of the proposed shape."""
    prediction = proposed["prediction"]
    if prediction is None:
        return _escape(f"Nothing supports a prediction for this shape: {proposed['why']}.")
    now = {o["target"]: o for o in observed}
    lines = []
    for metric, interval in prediction["metrics"].items():
        if metric not in now and "_p95" not in metric:
            continue
        seen = now.get(metric)
        then = (
            f"now {between(metric, seen['observed'], seen['at_least'], seen['at_most'])} → " if seen is not None else ""
        )
        limit = ""
        if seen is not None:
            limit = (
                f", the limit is {figure(metric, seen['limit'])}: {verdict(Interval(**interval).within(seen['limit']))}"
            )
        low, mid, high = (figure(metric, interval[end]) for end in ("low", "mid", "high"))
        lines.append(f"• {wording(metric)}: {then}*{mid}* (80 %: {low} to {high}){limit}")
    error = {k: v for k, v in prediction["error"].items() if v is not None}
    known = ", ".join(f"{heading(k)} {v:.0%}" for k, v in sorted(error.items())) or "not measured on this endpoint yet"
    return "\n".join([*lines, f"Method: {prediction['method']}; its error so far: {known}"])


def _money(row: Row) -> str:
    per_1k = row["body"]["proposed"]["money"]["per_1k_tokens"]
    return _saves(row) + (f"; {dollars(per_1k)} per 1k tokens" if per_1k is not None else "")


def _saves(row: Row) -> str:
    saving = row["saving_per_month"]
    if saving is None:
        return "what it saves is unknown: the price of a shape is not set"
    if saving == 0:
        return "costs the same"
    return f"saves ${saving:,.0f} a month" if saving > 0 else f"costs ${-saving:,.0f} more a month"


def _what(body: Mapping[str, Any]) -> str:
    """What differs: ``replicas 4 → 2``."""
    before, after = (Shape.from_dict(body[side]["shape"]) for side in ("current", "proposed"))
    return difference(before, after) or f"{_label(body['current'])} → {_label(body['proposed'])}"


def _first_target(body: Mapping[str, Any]) -> list[str]:
    """``time to first token (p95) 150 ms, the limit is 900 ms``: of the first target that is predicted. Empty: none is."""
    predicted = (body["proposed"]["prediction"] or {}).get("metrics", {})
    for seen in body.get("observed", ()):
        if seen["target"] in predicted:
            then = figure(seen["target"], predicted[seen["target"]]["mid"])
            return [f"{phrase(seen['target'])} {then}, the limit is {figure(seen['target'], seen['limit'])}"]
    return []


def _verb(direction: str) -> str:
    return {"grow": "a larger shape", "shrink": "a smaller shape", "reshape": "a change of limits"}[direction]


def _label(option: Mapping[str, Any]) -> str:
    return str(option["label"])


def _section(text: str) -> SectionBlock:
    return SectionBlock(text=MarkdownTextObject(text=_cut(text, _SECTION)))


#: In this order: Slack's control characters by their entities, its marks by signs that look alike, addresses broken by a space of no width.
_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "*": "\u2217", "`": "\u02cb", "~": "\u223c", "://": ":\u200b//"}


def _escape(text: str) -> str:
    """Text from elsewhere as text: it mentions nobody, begins no line of its own, is set in no other type, and is no link."""
    text = " ".join(text.split())
    for sign, harmless in _SIGNS.items():
        text = text.replace(sign, harmless)
    return text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
