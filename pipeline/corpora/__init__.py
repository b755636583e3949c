"""`armada corpus`: responses as an ordinary corpus, filtered by declared rules.

job          keys: where responses come from, which are kept, where they go
rules        options of each rule
generators   responses of a cache, or the predictions of a student, to blocks of prompts
answers      the answer in a response, and answers that many responses share
judges       rules that decide about the responses of a block
provenance   what the metadata of the file says
corpus       the run: decide about all responses, then write those that are kept
"""
