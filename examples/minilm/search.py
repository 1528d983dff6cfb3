"""Search sentences by meaning, with embeddings from the daemon.

    python -m examples.minilm.search ["a question" …] [--sentences FILE] [--top 3] [--socket PATH]

Each sentence is a request of its own: the daemon makes batches of those that are of about equal length. For some
hundred sentences their embeddings in one numpy array, and a product with it, are all the index that is needed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tensord import Client, TensordError

from .encoding import Encoder
from .install import HERE, InstallError

QUESTIONS = ["How do plants get their energy?", "my computer is broken", "Who won the football match?"]

Embeddings = NDArray[np.float32]


def main() -> None:
    options = parse_options()
    sentences = options.sentences.read_text().splitlines()
    try:
        encoder = Encoder()
        with Client(options.socket) as client:
            started = time.perf_counter()
            embeddings = embed(client, encoder, sentences)
            print(f"{len(sentences)} sentences in {time.perf_counter() - started:.2f} s")
            for question in options.questions:
                print(f"\n{question}")
                (wanted,) = embed(client, encoder, [question])
                for index, score in nearest(embeddings, wanted, options.top):
                    print(f"  {score:.3f}  {sentences[index]}")
    except (InstallError, TensordError) as error:
        sys.exit(f"error: {error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search sentences by meaning.")
    parser.add_argument("questions", nargs="*", metavar="question", default=QUESTIONS, help="what to look for")
    parser.add_argument("--sentences", type=Path, default=HERE / "sentences.txt", help="a text file, one a line")
    parser.add_argument("--top", type=int, default=3, help="how many to show")
    parser.add_argument("--socket", type=Path, help="the daemon's socket, if it is not where clients look")
    return parser.parse_args()


def embed(client: Client, encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """Embeddings (texts, 384), each of length 1."""
    answers = [client.submit("minilm", encoder.encode([text])) for text in texts]
    return np.concatenate([answer.result() for answer in answers])


def nearest(embeddings: Embeddings, wanted: Embeddings, top: int) -> list[tuple[int, float]]:
    """Indices and cosines of the `top` embeddings nearest to `wanted` (384), best first."""
    scores = embeddings @ wanted
    return [(int(index), float(scores[index])) for index in np.argsort(-scores)[:top]]


if __name__ == "__main__":
    main()
