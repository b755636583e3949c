"""vLLM in an environment of its own: `PYTHON vllm_worker.py FOLDER DTYPE`.

Reads a line of JSON with the token ids of prompts, how many tokens to generate at most, and those
that end a response; answers with a line of seconds and generated ids. Once loaded, says `ready`.
"""

import json
import os
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams


def main() -> None:
    """Answer until the input ends."""
    folder, dtype = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    model = LLM(folder, dtype=dtype, max_model_len=2048, enable_prefix_caching=False)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        how = SamplingParams(
            temperature=0, max_tokens=asked["most"], stop_token_ids=asked["ends"], detokenize=False
        )
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        started = time.perf_counter()
        found = model.generate(prompts, how, use_tqdm=False)
        seconds = time.perf_counter() - started
        ids = [list(each.outputs[0].token_ids) for each in found]
        print(json.dumps({"seconds": seconds, "ids": ids}), file=answers, flush=True)


if __name__ == "__main__":
    main()
