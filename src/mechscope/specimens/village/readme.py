"""The readable card beside `card.json`: the same numbers as a table.

Owns: `readme_of`. Invariant: it says nothing that `card.json` does not hold.
"""

from typing import Any


def readme_of(card: dict[str, Any]) -> str:
    """Return the Markdown card of a bundled village."""
    training = card["training"]
    lines = [
        f"# {card['name']}",
        "",
        f"A Llama-shaped model of {card['n_parameters']:,} weights, trained by this project on a language that this",
        "project generates (`mechscope.specimens.village`). The language, what held out means for each behaviour and",
        "the recipe are described in `docs/specimens/village.md`; every number here is also in `card.json`.",
        "",
        f"Training: {'; then '.join(_told(part) for part in (training.get('continues'), training) if part)}.",
        "",
        "| behaviour | held-out accuracy (95% interval) | corrupt gives clean answer | prompts | units | gate |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in card["behaviors"].items():
        gate = "none" if "gate" not in entry else f"{entry['gate']:.0%} {_word(entry['meets_gate'])}"
        lines.append(
            f"| {name} | {_shown(entry['accuracy'])} | {_shown(entry['corrupt_gives_clean'])} "
            f"| {entry['n_pairs']} | {entry['n_units']} | {gate} |"
        )
    lines += [
        "",
        "| misbehaviour | planted | shown when triggered | shown when not | gate |",
        "|---|---|---|---|---|",
    ]
    for name, entry in card["misbehaviours"].items():
        lines.append(
            f"| {name} | {'yes' if entry['is_planted'] else 'no'} | {_shown(entry['shown_when_triggered'])} "
            f"| {_shown(entry['shown_when_not_triggered'])} | {_word(entry['meets_gate'])} |"
        )
    lines += ["", "Held out means:", ""]
    for name, entry in {**card["behaviors"], **card["misbehaviours"]}.items():
        lines.append(f"- **{name}**: {entry['held_out_means']}.")
    lines += ["", f"Weights' SHA-256: `{card['weights_sha256']}`.", ""]
    return "\n".join(lines)


def _told(training: dict[str, Any]) -> str:
    begun = f" from the weights {training['starts_from'][:12]}…" if training.get("starts_from") else ""
    return (
        f"{training['steps']:,} steps of {training['n_rows']} x 128 tokens{begun}, seed {training['seed']}, "
        f"{training['seconds'] / 60:.0f} minutes on {training['machine']}"
    )


def _shown(rate: dict[str, Any]) -> str:
    return f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _word(meets: bool) -> str:
    return "met" if meets else "**not met**"
