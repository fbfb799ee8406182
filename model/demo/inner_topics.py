"""What the model knows about the inside of Baton: memory, transfers, exactness, scale."""

from __future__ import annotations

from model.demo.topic import Topic

INNER_TOPICS: tuple[Topic, ...] = (
    Topic(
        name="transfer",
        nouns=("KV transfer", "the KV transfer", "KV transport", "the KV handover"),
        questions=(
            "how does the KV travel?",
            "how is the KV cache moved between workers?",
            "how does the KV get to the decode worker?",
            "which transports does Baton have?",
            "does Baton support RDMA?",
        ),
        held_out=("by which way does KV reach the decode worker?",),
        slots=(
            (
                "The decode worker reads the KV that the prefill worker offers, layer by layer.",
                "KV moves layer by layer while the prefill worker computes the next layer.",
            ),
            (
                "There are three transports: grpc anywhere, shm on one host and nixl for RDMA.",
                "It travels by gRPC, by shared memory on one host, or by NIXL over RDMA.",
            ),
            (
                "KV has streams of its own, beside the control messages.",
                "Nobody writes into another worker's cache.",
            ),
        ),
    ),
    Topic(
        name="request_story",
        questions=(
            "walk me through a request",
            "tell me the story of a request",
            "what happens to a request, step by step?",
            "how is a request served from start to end?",
            "explain the life of a request",
            "what are the steps of a request?",
            "give me a long answer about a request",
        ),
        held_out=("describe a request's whole journey",),
        slots=(
            ("A request goes through seven steps.", "Here is a request, step by step."),
            ("First, the gateway checks it, renders the chat template and cuts it into tokens.",),
            ("Second, placement picks a decode worker and, as a rule, a prefill worker.",),
            ("Third, the gateway submits it on its session with that decode worker.",),
            ("Fourth, the decode worker pins its prefix hit and reserves the other blocks.",),
            ("Fifth, the prefill worker computes the prompt and offers each layer of KV.",),
            ("Sixth, the first token is sent at once, and decode begins when all KV is in.",),
            ("Seventh, the gateway turns tokens into text and streams it to the client.",),
        ),
        weight=1.2,
    ),
    Topic(
        name="placement",
        nouns=("placement", "load balancing in Baton", "routing", "request placement"),
        questions=(
            "how does Baton choose a worker?",
            "how are workers picked?",
            "who picks the worker?",
            "which worker gets my request?",
        ),
        held_out=("who decides which worker gets a request?",),
        slots=(
            (
                "Placement picks a decode worker and, if it pays, a prefill worker as well.",
                "The gateway places each request on the workers where it costs least.",
            ),
            (
                "Load is counted in queued prompt tokens less cached ones, not in requests.",
                "It compares the tokens that are missing, the queue and the transfer.",
            ),
            ("Ties are broken at random.",),
        ),
    ),
    Topic(
        name="overload",
        nouns=("overload", "admission", "admission control", "backpressure"),
        questions=(
            "what happens when Baton is full?",
            "what happens under too much load?",
            "why do I get a 429?",
            "why do I get a 503?",
            "what if the queue is full?",
        ),
        held_out=("what if there are too many requests?",),
        slots=(
            (
                "When the queue is full, the gateway answers 429 and says when to try again.",
                "Too many requests are refused at admission with 429 and Retry-After.",
            ),
            (
                "Without a healthy worker the answer is 503.",
                "503 means that no healthy worker is there.",
            ),
            (
                "A request waits in exactly one place, the gateway, and holds nothing there.",
                "Nobody waits while holding memory, so there is no deadlock.",
            ),
        ),
    ),
    Topic(
        name="preemption",
        nouns=("preemption", "migration", "draining", "a drain"),
        questions=(
            "what happens when memory runs out?",
            "how does Baton drain a worker?",
            "what if a worker is out of memory?",
            "what if there is no memory left?",
        ),
        held_out=("what if a decode worker has no memory left?",),
        slots=(
            (
                "A preempted or drained sequence goes back to the gateway as a new attempt.",
                "When memory runs out or a worker drains, sequences return to the gateway.",
            ),
            (
                "If the same worker lives, it comes first, for its prefix cache has the blocks.",
                "It is placed again with its prompt and the tokens made so far.",
            ),
            ("The client loses no token.", "No token is lost, repeated or changed."),
        ),
    ),
    Topic(
        name="blocks",
        nouns=("a quarantined block", "quarantine", "block states", "the states of a block"),
        questions=(
            "which states can a block have?",
            "does Baton leak memory?",
            "what states does a block have?",
            "what state is a block in?",
        ),
        held_out=("in which states may a KV block be?",),
        slots=(
            (
                "A KV block is in exactly one state: free, cached, owned or quarantined.",
                "Free, cached, owned and quarantined are the four states of a KV block.",
            ),
            (
                "A quarantined block belongs to an unfinished transfer whose owner has gone.",
                "Quarantine keeps a block from reuse until its transfer is known to be over.",
            ),
            (
                "An integrity check recounts all references when a worker is idle.",
                "When idle, a worker checks that nothing is owned or quarantined any more.",
            ),
        ),
    ),
    Topic(
        name="ownership",
        nouns=("the ownership rule", "the one rule", "the call tree", "a lease", "the heartbeat"),
        questions=("who owns KV memory?", "when is memory freed?", "do KV blocks time out?"),
        held_out=("who is the owner of the memory?",),
        slots=(
            (
                "The call tree is the ownership tree: a call holds memory only while it lives.",
                "Memory is held by a living call, and cancelling a call frees all below it.",
            ),
            (
                "KV has no time-outs of its own; the only lease is that the call is alive.",
                "Both ends of a call send a heartbeat every second.",
            ),
            (
                "Three missed heartbeats end the call and free its memory.",
                "If three heartbeats are missed, the call ends.",
            ),
        ),
    ),
    Topic(
        name="exactness",
        nouns=("exactness", "deterministic mode", "determinism", "the deterministic flag"),
        questions=(
            "is Baton deterministic?",
            "do I get the same answer each time?",
            "are answers reproducible?",
            "are the results always the same?",
            "does the KV change on its way?",
            "what does --deterministic do?",
        ),
        held_out=("will I get the same tokens every time?",),
        slots=(
            (
                "KV bytes always arrive as computed, and no token sent is ever changed.",
                "Baton promises that no token is lost, repeated or changed.",
            ),
            (
                "With --deterministic the tokens are the same bit for bit under any batch.",
                "The deterministic mode gives bitwise the same tokens for any batch or placement.",
            ),
            (
                "Otherwise results agree up to the order of summation.",
                "Without it only the order of summation may differ.",
            ),
        ),
    ),
    Topic(
        name="sampling",
        nouns=("sampling", "temperature", "top-p", "a seed", "the seed", "greedy decoding"),
        questions=(
            "how is a token chosen?",
            "how does sampling work?",
            "how is the next token picked?",
            "what does a temperature of 0.7 mean?",
        ),
        held_out=("how does Baton pick the next token?",),
        slots=(
            (
                "Sampling picks the next token from the model's probabilities.",
                "To sample is to draw the next token according to the model's scores.",
            ),
            (
                "Temperature zero takes the likeliest one; higher values allow more surprise.",
                "A low temperature is careful, a high one is daring.",
            ),
            (
                "In Baton the draw depends only on the seed, the position and the choice index.",
                "The seed and the position fix the draw, so a replay draws the same.",
            ),
        ),
    ),
    Topic(
        name="streaming",
        nouns=("streaming", "SSE", "server-sent events", "the API", "the OpenAI API"),
        questions=(
            "does Baton speak the OpenAI API?",
            "how does streaming work?",
            "how are tokens streamed?",
            "in what format is the stream?",
            "how do the tokens reach me?",
        ),
        held_out=("in which form do the tokens arrive?",),
        slots=(
            (
                "The gateway streams each answer as server-sent events in the OpenAI style.",
                "Answers arrive as an OpenAI-style stream of server-sent events.",
            ),
            (
                "Tokens become text one by one, and stop strings are matched on the way.",
                "Each event carries the text that is new.",
            ),
            (
                "At the end come the finish reason, the usage and [DONE].",
                "A finish reason, the usage and [DONE] close the stream.",
            ),
        ),
    ),
    Topic(
        name="deadlines",
        nouns=("a deadline", "deadlines", "timeouts", "a time-out"),
        questions=(
            "what happens when a request takes too long?",
            "does Baton have timeouts?",
            "what if the answer never comes?",
            "what if an answer is too slow?",
        ),
        held_out=("what if an answer takes forever?",),
        slots=(
            (
                "A request has deadlines for its phases, from the queue to the last token.",
                "There are deadlines for queue, prefill, transfer, first token and total time.",
            ),
            (
                "When one passes, the request is cancelled and an error event names it.",
                "If one is missed, everything below is cancelled and the client is told which.",
            ),
        ),
    ),
    Topic(
        name="scale",
        nouns=("scaling", "scaling Baton", "horizontal scaling", "membership"),
        questions=(
            "how does Baton scale?",
            "can Baton run on many machines?",
            "does Baton run on Kubernetes?",
            "how do I add workers?",
            "can I use more machines?",
            "what if one machine is not enough?",
            "can I run Baton on several machines?",
        ),
        held_out=("what about more than one machine?",),
        slots=(
            (
                "Prefill workers, decode workers and gateways each scale on their own.",
                "Add prefill workers for TTFT and decode workers for ITL.",
            ),
            (
                "On many machines, stateless gateways stand behind a load balancer.",
                "Workers are found by DNS, Kubernetes or etcd.",
            ),
            (
                "On one machine `baton up` is enough.",
                "A fleet can be upgraded while it runs.",
            ),
        ),
    ),
    Topic(
        name="colocated",
        nouns=("a colocated worker", "colocation", "local prefill", "a mixed worker"),
        questions=("can a decode worker prefill?", "can one worker do both?"),
        held_out=("may a single worker do prefill and decode?",),
        slots=(
            (
                "A decode worker can also prefill, which is called local prefill.",
                "With local prefill the decode worker reads the prompt itself.",
            ),
            (
                "Baton chooses it when it is cheaper than prefill elsewhere plus the transfer.",
                "It pays when little of the prompt is missing, as in the later turns of a chat.",
            ),
            (
                "A colocated worker always does it.",
                "A worker with both roles has a block quota for each.",
            ),
        ),
    ),
)
