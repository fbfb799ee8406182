"""What the model knows about serving language models in general."""

from __future__ import annotations

from model.demo.topic import Topic, comparisons

SERVING_TOPICS: tuple[Topic, ...] = (
    Topic(
        name="prefill",
        nouns=("prefill", "the prefill phase", "prefilling", "prompt prefill", "the prefill step"),
        questions=(
            "what happens during prefill?",
            "what happens in the prefill phase?",
            "why is prefill compute bound?",
            "what does prefill do?",
            "what does the model do during prefill?",
            "what is going on in prefill?",
            "why is prefill slow?",
            "how is the prompt processed?",
        ),
        held_out=("what goes on while the model does prefill?", "prefill - what's that about?"),
        slots=(
            (
                "Prefill is the first phase of an answer: the model reads the prompt at once.",
                "In prefill the model reads every token of the prompt in one pass.",
                "Prefill turns a prompt into KV cache, layer by layer.",
            ),
            (
                "It is bound by arithmetic, because many tokens share each read of the weights.",
                "All the prompt's tokens are computed together, so arithmetic is its limit.",
                "It keeps the arithmetic units busy and likes a few large batches.",
            ),
            (
                "Its result is the KV cache of the prompt and the first token of the answer.",
                "When it ends, the first token is sampled and decode can begin.",
                "How long it takes decides the time to first token.",
            ),
        ),
        more=(
            "Baton runs long prompts in chunks and packs the chunks of several prompts together.",
            "Each layer of each chunk is offered to the decode worker as soon as it is computed.",
            "A prompt whose beginning is in the prefix cache only needs the rest to be prefilled.",
        ),
        weight=1.5,
    ),
    Topic(
        name="decode",
        nouns=("decode", "the decode phase", "decoding", "the decode step", "token generation"),
        questions=(
            "what happens during decode?",
            "what happens in the decode phase?",
            "why is decode memory bound?",
            "what does decode do?",
            "what does the model do during decode?",
            "what is going on in decode?",
            "why is decode slow?",
            "how are tokens generated?",
        ),
        held_out=("what goes on while the model does decode?", "decode - what's that about?"),
        slots=(
            (
                "Decode is the second phase of an answer: it makes one token after another.",
                "In decode the model generates the answer one token at a time.",
                "Decode produces the answer, one token for each step.",
            ),
            (
                "Every step reads all weights and the KV cache, so memory bandwidth is the limit.",
                "It is bound by memory bandwidth: each step reads all weights for a few tokens.",
                "Its speed is limited by memory bandwidth rather than by arithmetic.",
            ),
            (
                "That is why it wants many sequences in one batch.",
                "Many sequences share the cost of a step when they are batched together.",
                "The pace of its steps is what users feel as inter-token latency.",
            ),
        ),
        more=(
            "A decode step appends one K and one V to the cache of each sequence, in every layer.",
            "In Baton a sequence joins the running batch at the next step once its KV is complete.",
            "It stops at the end-of-turn token, at a stop string or at the token limit.",
        ),
        weight=1.5,
    ),
    Topic(
        name="prefill_vs_decode",
        questions=(
            *comparisons("prefill", "decode"),
            *comparisons("the prefill phase", "the decode phase"),
        ),
        held_out=("prefill versus decode, what is the difference?",),
        slots=(
            (
                "Prefill reads the whole prompt at once; decode writes the answer token by token.",
                "Prefill works on the whole prompt at once, decode on one new token per step.",
            ),
            (
                "Prefill is bound by arithmetic, decode by memory bandwidth.",
                "The first is limited by arithmetic and the second by memory bandwidth.",
            ),
            (
                "Prefill wants few, large batches; decode wants many sequences.",
                "In one process each stalls the other, so Baton runs them apart.",
            ),
        ),
    ),
    Topic(
        name="kv_cache",
        nouns=(
            "the KV cache",
            "a KV cache",
            "KV cache",
            "kv-cache",
            "the key-value cache",
            "KV caching",
            "the kv",
            "kv",
        ),
        questions=(
            "why do we need a KV cache?",
            "what is stored in the KV cache?",
            "what is inside the KV cache?",
            "why cache keys and values?",
            "what are the keys and values for?",
            "how large is the KV cache?",
            "why does the KV cache use so much memory?",
            "what does KV stand for?",
        ),
        held_out=("what does a KV cache hold?", "why would one cache keys and values?"),
        slots=(
            (
                "The KV cache holds the keys and values of every token the model has read.",
                "A KV cache stores, for each token and layer, the keys and values attention needs.",
                "The KV cache is the model's memory of the tokens so far: their keys and values.",
            ),
            (
                "With it, each new token only computes its own keys and values.",
                "It saves the model from reading the whole text again for every new token.",
                "Thanks to it a decode step computes one token instead of all of them.",
            ),
            (
                "It grows with every token, so memory decides how many sequences fit.",
                "In Baton prefill fills it and decode reads it on another worker.",
                "Baton keeps it in blocks of fixed size.",
            ),
        ),
        more=(
            "Its size is two tensors for each layer, times KV heads, head size and tokens.",
            "Baton rounds keys and values to FP16 and writes them before attention reads them.",
            "KV bytes arrive at the decode worker exactly as the prefill worker computed them.",
        ),
        weight=2.0,
    ),
    Topic(
        name="ttft",
        nouns=("TTFT", "time to first token", "the time to first token", "first token latency"),
        questions=(
            "what does TTFT stand for?",
            "how do I lower TTFT?",
            "what decides the time to first token?",
            "why is my first token slow?",
        ),
        held_out=("what do people mean by TTFT?",),
        slots=(
            (
                "TTFT is the time to first token: how long a user waits before the answer begins.",
                "TTFT means time to first token, from sending a request to seeing its first token.",
            ),
            (
                "It is made of queueing and prefill, so it grows with the length of the prompt.",
                "Waiting in the queue and prefilling the prompt are most of it.",
            ),
            (
                "In Baton the first token is sent at once and does not wait for the KV transfer.",
                "A hit in the prefix cache makes it shorter.",
                "More prefill workers bring it down without touching decode.",
            ),
        ),
        more=(
            "Baton samples the first token on the prefill worker and forwards it right away.",
            "Placement sends a prompt to the healthy prefill worker with the least queued work.",
        ),
        weight=1.5,
    ),
    Topic(
        name="itl",
        nouns=("ITL", "inter-token latency", "the inter-token latency", "time between tokens"),
        questions=(
            "what does ITL stand for?",
            "how do I lower ITL?",
            "what decides the inter-token latency?",
            "why does my stream stutter?",
        ),
        held_out=("what do people mean by ITL?",),
        slots=(
            (
                "ITL is inter-token latency: the time between one token of an answer and the next.",
                "ITL means inter-token latency, the pause between two tokens of a stream.",
            ),
            (
                "It is the length of a decode step, which memory bandwidth decides.",
                "It follows the length of the decode steps, so larger batches make it longer.",
            ),
            (
                "A long prefill in the same process would stretch it, and Baton avoids that.",
                "With prefill on other workers no long prompt can interrupt a stream.",
                "More decode workers bring it down without touching prefill.",
            ),
        ),
        more=(
            "Readers notice the slowest gaps most, so look at its 99th percentile.",
            "Baton sends one message of tokens per decode step, which keeps the overhead small.",
        ),
        weight=1.5,
    ),
    Topic(
        name="ttft_vs_itl",
        questions=(
            *comparisons("TTFT", "ITL"),
            *comparisons("time to first token", "inter-token latency"),
        ),
        held_out=("TTFT versus ITL, what is the difference?",),
        slots=(
            (
                "TTFT is the wait before the first token; ITL is the wait between later tokens.",
                "TTFT measures how soon an answer begins, ITL how smoothly it goes on.",
            ),
            (
                "Prefill decides TTFT and decode decides ITL.",
                "The first belongs to prefill, the second to decode.",
            ),
            (
                "Apart, the two can be tuned on their own, which is the point of Baton.",
                "Baton scales the workers for each of them independently.",
            ),
        ),
    ),
    Topic(
        name="continuous_batching",
        nouns=("continuous batching", "in-flight batching", "dynamic batching", "batching"),
        questions=(
            "how are requests batched?",
            "why use continuous batching?",
            "when does a sequence join the batch?",
        ),
        held_out=("what makes batching continuous?",),
        slots=(
            (
                "Continuous batching lets sequences join and leave the batch at every step.",
                "With continuous batching the batch is made anew for each decode step.",
            ),
            (
                "A finished sequence makes room at once, and a waiting one takes its place.",
                "No sequence waits for the slowest one of its batch to finish.",
            ),
            (
                "So the device stays busy while answers of any length come and go.",
                "It keeps throughput high and waiting short.",
                "In Baton a sequence joins at the next step once its last KV block is in.",
            ),
        ),
        more=(
            "The scheduler has a budget for each step, shared by prefill chunks and decode steps.",
            "Static batching would hold short answers back until the longest one is done.",
        ),
        weight=1.5,
    ),
    Topic(
        name="paged_cache",
        nouns=("the paged cache", "paged cache", "a paged KV cache", "paged attention", "paging"),
        questions=(
            "why is the cache paged?",
            "why is the cache cut into blocks?",
            "why use blocks for the KV cache?",
            "what are pages?",
            "how is KV memory managed?",
            "what are cache blocks?",
            "what is a block table?",
            "what is a KV block?",
        ),
        held_out=("why cut the cache into pages?",),
        slots=(
            (
                "A paged cache keeps the KV of a sequence in blocks of fixed size.",
                "In a paged cache KV memory is cut into equal blocks, like the pages of a book.",
            ),
            (
                "A block table says which block holds which tokens, so they may lie anywhere.",
                "Each sequence has a block table that lists its blocks in order.",
            ),
            (
                "No memory is set aside for tokens that never come.",
                "That leaves almost no gaps, and blocks can be shared.",
                "Blocks are taken as needed and given back when the sequence ends.",
            ),
        ),
        more=(
            "A block in Baton is free, cached, owned or quarantined, and never two of these.",
            "The decode worker reserves all blocks for a prompt at once or answers full.",
        ),
        weight=1.5,
    ),
    Topic(
        name="prefix_cache",
        nouns=("the prefix cache", "a prefix cache", "prefix caching", "prompt caching"),
        questions=(
            "how are prompts with the same beginning handled?",
            "what are cached tokens?",
            "why reuse the KV of an earlier prompt?",
            "can old prompts be reused?",
            "what happens when two prompts begin alike?",
            "why is my second question faster?",
            "how do prefix cache keys work?",
        ),
        held_out=("why keep the KV of old prompts?",),
        slots=(
            (
                "The prefix cache keeps the KV of prompts that were seen before.",
                "A prefix cache lets prompts that begin alike share the KV of that beginning.",
            ),
            (
                "When a new prompt begins with the same tokens, only the rest is prefilled.",
                "A shared system prompt or an earlier turn is then not computed again.",
            ),
            (
                "Its keys are hashes of the tokens and of the block before.",
                "A block enters it only when all its layers are written and verified.",
                "By default each API key has its own salt, so no tenant learns of another.",
            ),
        ),
        more=(
            "A lookup pins the blocks it finds until the sequence ends.",
            "A multi-turn chat gains most, for each turn begins with all the turns before.",
        ),
        weight=1.5,
    ),
    Topic(
        name="language_model",
        nouns=("a language model", "an LLM", "a large language model", "LLMs", "a transformer"),
        questions=("how does an LLM work?", "how do language models write text?"),
        held_out=("what would you call a language model?",),
        slots=(
            (
                "A language model reads a text and predicts its next token.",
                "A language model is a program that has learnt which token is likely to come next.",
            ),
            (
                "Token by token, these predictions become an answer.",
                "Repeating that prediction writes a whole answer.",
            ),
            (
                "Serving one means prefill for the prompt and decode for the answer.",
                "I am a very small one.",
            ),
        ),
        more=("Large ones have billions of weights; I have fewer than four million.",),
        weight=0.7,
    ),
    Topic(
        name="token",
        nouns=("a token", "tokens", "a tokenizer", "tokenisation", "tokenization"),
        questions=("what are tokens?", "how is text cut into tokens?"),
        held_out=("what is meant when people say token?",),
        slots=(
            (
                "A token is a piece of text: a word, a part of a word or a single sign.",
                "Tokens are the pieces of text that a language model reads and writes.",
            ),
            (
                "A tokenizer cuts text into tokens and gives each of them a number.",
                "In Baton the gateway turns text into tokens and tokens back into text.",
            ),
        ),
        more=("My own vocabulary has fewer than two thousand tokens, and each digit is one.",),
        weight=0.7,
    ),
    Topic(
        name="attention",
        nouns=("attention", "self-attention", "the attention layer", "GQA", "an attention head"),
        questions=("how does attention work?", "why does attention need keys and values?"),
        held_out=("what is attention good for?",),
        slots=(
            (
                "Attention lets each token look at the tokens before it.",
                "With attention a token gathers what it needs from earlier tokens.",
            ),
            (
                "Its query is compared with their keys, and their values are mixed accordingly.",
                "It compares a query with the keys of all earlier tokens and mixes their values.",
            ),
            (
                "Those keys and values are what the KV cache holds.",
                "In Baton attention reads only the cache, even for the tokens of the current step.",
            ),
        ),
        more=("With grouped queries several query heads share one KV head, which saves memory.",),
        weight=0.7,
    ),
)
