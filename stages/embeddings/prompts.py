"""What the texts of a student that embeds begin with, as it was trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PromptName = Literal["query", "document"]
"""Names of prompts, as sentence-transformers has them; passages are documents there."""


class Prompts(BaseModel):
    """Prefixes of queries and passages."""

    model_config = ConfigDict(frozen=True)

    query_prompt: str = Field(default="", description="prefix of queries")
    passage_prompt: str = Field(default="", description="prefix of passages")

    def prompt(self, name: PromptName | None = None) -> str:
        """The prefix of a text: of that name, or as a text has it that is neither, which is the
        passages' if these have one."""
        if name == "query" or (name is None and not self.passage_prompt):
            return self.query_prompt
        return self.passage_prompt
