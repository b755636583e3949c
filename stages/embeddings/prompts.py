"""What the texts of a student that embeds begin with, as it was trained, and what reads them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ...cache_schemas.errors import JobError

PromptName = Literal["query", "document"]
"""Names of prompts, as sentence-transformers has them; passages are documents there."""

PassageTower = Literal["shared", "own", "cached"]
"""What embeds passages: the student that embeds queries, another one, or a teacher, once."""


class Prompts(BaseModel):
    """Prefixes of queries and passages."""

    model_config = ConfigDict(frozen=True)

    query_prompt: str = Field(default="", description="prefix of queries")
    passage_prompt: str = Field(default="", description="prefix of passages")

    @property
    def differ(self) -> bool:
        """Whether queries are read otherwise than passages."""
        return self.query_prompt != self.passage_prompt

    @property
    def named(self) -> dict[str, str]:
        """Both by their names; nothing where both are empty."""
        found = {"query": self.query_prompt, "document": self.passage_prompt}
        return found if any(found.values()) else {}

    def prompt(self, name: PromptName) -> str:
        """The prefix of that name."""
        return self.query_prompt if name == "query" else self.passage_prompt

    def chosen(self, name: PromptName | None, student: str) -> str:
        """The prefix of texts of which a job says what they are, or need not, as both have the
        same. Raises JobError."""
        if name is None and self.differ:
            raise JobError(
                f"prompt_name is missing: student {student} reads queries behind "
                f"{self.query_prompt!r} and passages behind {self.passage_prompt!r}; set "
                "prompt_name=query or prompt_name=document"
            )
        return self.prompt(name or "query")


def both(prompt: str) -> Prompts:
    """One prefix, whatever a text is."""
    return Prompts(query_prompt=prompt, passage_prompt=prompt)
