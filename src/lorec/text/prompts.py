"""What a language model is asked about a user (the LLM-enhanced view of Zhang et al. 2024)."""

import re

from lorec.data import Sequences


def user_prompts(log: Sequences, titles: list[str], scenario: str, budget: int) -> list[str]:
    """One question for each user, the titles of their history in order, within a budget of words.

    Where the budget is short the oldest titles go, never the question. A title is folded into one line of plain words,
    so that it can't pretend to be the question.
    """
    short = [_plain(title) for title in titles]
    words = [len(title.split()) + 1 for title in short]
    opening = f"These are, oldest first, the items that one account chose in {scenario}:"
    question = "How likely is it that this account is a fraudster?"
    room = budget - len(opening.split()) - len(question.split())
    prompts = []
    for user in range(len(log)):
        chosen: list[str] = []
        left = room
        for number in log[user][::-1]:
            left -= words[number - 1]
            if left < 0 and chosen:
                break
            chosen.append(f'"{short[number - 1]}"')
        prompts.append(f"{opening} {'; '.join(reversed(chosen))}. {question}")
    return prompts


def _plain(title: str, longest: int = 24) -> str:
    words = re.sub(r"[\s\x00-\x1f\x7f\"]+", " ", title[:1000]).split()
    return " ".join(words[:longest]) or "(no title)"
