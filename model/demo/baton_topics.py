"""What the model knows about Baton itself. The project's design is the truth these follow."""

from __future__ import annotations

from model.demo.topic import Topic, losses

BATON_TOPICS: tuple[Topic, ...] = (
    Topic(
        name="baton",
        nouns=("Baton", "the Baton project", "this project", "this service"),
        questions=(
            "what does Baton do?",
            "what is Baton good for?",
            "why is it called Baton?",
            "introduce Baton",
            "give me an introduction to Baton",
            "a summary of Baton please",
            "tell me all about Baton",
            "Baton in detail",
            "how does Baton work?",
            "what is this?",
        ),
        held_out=("what on earth is Baton?", "give me an overview of Baton"),
        slots=(
            (
                "Baton serves large language models with prefill and decode in separate processes.",
                "Baton is a service for language models that runs prefill and decode apart.",
            ),
            (
                "A prefill worker turns the prompt into KV cache and hands it over layer by layer.",
                "Like a baton in a relay, the KV cache passes from a prefill to a decode worker.",
                "Prefill workers read prompts, and decode workers write answers.",
            ),
            (
                "A gateway in front speaks the OpenAI style and streams the tokens.",
                "So TTFT and ITL are tuned, scaled and placed independently.",
                "If a worker dies, the stream goes on and no token is lost or repeated.",
            ),
        ),
        more=(
            "Its parts are a gateway, prefill workers and decode workers, joined by gRPC.",
            "Memory belongs to the call that uses it, so cancelling a call frees everything below.",
            "It is written in Python and runs on one machine or on many.",
        ),
        weight=2.0,
    ),
    Topic(
        name="disaggregation",
        nouns=("disaggregation", "disaggregated serving", "disaggregated prefill and decode"),
        questions=(
            "why disaggregate?",
            "why separate prefill and decode?",
            "why split prefill from decode?",
            "why run prefill and decode in separate processes?",
            "why should prefill and decode be apart?",
            "what are the benefits of disaggregation?",
            "why not run both in one process?",
            "why is Baton disaggregated?",
        ),
        held_out=("why keep prefill and decode apart?", "what do I gain from disaggregation?"),
        slots=(
            (
                "Prefill is bound by arithmetic and decode by memory bandwidth: Baton parts them.",
                "Disaggregation means that prefill and decode run in separate processes.",
                "In one process prefill and decode stall each other; apart they do not.",
            ),
            (
                "Prefill wants few, large batches, while decode wants many sequences.",
                "A long prompt would make every running stream wait if both shared a process.",
            ),
            (
                "Apart, TTFT and ITL are tuned, scaled and placed independently.",
                "Each side then gets the machines, the batches and the number of workers it needs.",
            ),
        ),
        more=(
            "The price is moving the KV cache, which Baton does layer by layer during prefill.",
            "When prefilling on the decode worker is cheaper, Baton simply does that.",
        ),
        weight=1.8,
    ),
    Topic(
        name="worker_death",
        questions=(
            *losses("a worker", "the worker", "one worker", "my worker", "one of the workers"),
            *losses("a node", "a machine", "a server"),
            "how does Baton recover from failures?",
            "is Baton fault tolerant?",
            "how does failover work?",
            "what happens after a crash?",
        ),
        nouns=("fail-over", "failover", "fault tolerance in Baton", "the recovery path"),
        held_out=("suppose a worker goes down, what then?", "what if one of my workers is killed?"),
        slots=(
            (
                "When a worker dies, the request goes back to the gateway and is placed again.",
                "If a worker is lost, the gateway places its requests again on a healthy one.",
            ),
            (
                "The next attempt carries the prompt and all tokens received so far.",
                "It starts again from the prompt and the tokens that the gateway already has.",
            ),
            (
                "No token is lost, repeated or changed; the stream just goes on.",
                "The client sees a short delay and nothing else.",
            ),
        ),
        more=(
            "Preemption, migration, retry and fail-over are the same code.",
            "The gateway accepts only the current attempt and the next token index.",
            "Each call has a heartbeat every second, and three missed ones end it.",
        ),
        weight=2.0,
    ),
    Topic(
        name="prefill_worker_death",
        questions=(
            *losses("a prefill worker", "the prefill worker", "my prefill worker", "prefill"),
        ),
        held_out=("suppose the prefill worker goes down, what then?",),
        slots=(
            (
                "When a prefill worker dies before its KV is complete, partial blocks are dropped.",
                "If a prefill worker is lost, the decode worker drops the blocks it had received.",
            ),
            (
                "The request returns to the gateway and is tried again after a short back-off.",
                "The gateway then places the request again, with a bounded back-off.",
            ),
            (
                "At last the decode worker can prefill locally, so the client only sees a delay.",
                "The client notices nothing but the delay.",
            ),
        ),
    ),
    Topic(
        name="decode_worker_death",
        questions=(*losses("a decode worker", "the decode worker", "my decode worker", "decode"),),
        held_out=("suppose the decode worker goes down, what then?",),
        slots=(
            (
                "When a decode worker dies, the gateway starts another attempt elsewhere.",
                "If a decode worker is lost, its requests are placed on another one.",
            ),
            (
                "The attempt continues from the prompt and the tokens that were already sent.",
                "The tokens received so far are replayed as part of the input.",
            ),
            (
                "No token is lost, repeated or changed, and the stream goes on.",
                "The same seed and positions make the draws go on as before.",
            ),
        ),
    ),
    Topic(
        name="gateway_death",
        questions=(*losses("a gateway", "the gateway", "my gateway"),),
        held_out=("suppose the gateway goes down, what then?",),
        slots=(
            (
                "When a gateway dies, its connections close and the workers free everything.",
                "If the gateway is lost, the workers free what its requests held.",
            ),
            (
                "The client resumes on another gateway from the tokens it has.",
                "A client can go on at another gateway with the text it already received.",
            ),
            ("The first chunk told it the request id, the seed and the prompt digest.",),
        ),
    ),
    Topic(
        name="client_leaves",
        nouns=("cancellation", "cancelling a request", "request cancellation"),
        questions=(
            *losses("the client", "a client", "the user", "my client"),
            "what happens if I close the connection?",
            "what if the client disconnects?",
            "what if I stop reading the answer?",
            "what happens if I close my browser?",
            "what if I leave before the answer is done?",
            "how do I cancel a request?",
            "what happens when I cancel?",
        ),
        held_out=("what if I hang up in the middle of an answer?",),
        slots=(
            (
                "When the client goes away, the request is cancelled all the way down.",
                "Closing the connection cancels the request and every call below it.",
            ),
            (
                "The gateway tells the decode worker, which ends its Prefill call and KV streams.",
                "The call tree is the ownership tree, so whatever hangs below ends with it.",
            ),
            (
                "Its memory is free again within one engine step.",
                "Decode workers free its blocks within one step, prefill workers within a chunk.",
            ),
        ),
    ),
    Topic(
        name="start",
        questions=(
            "how do I start Baton?",
            "how to start Baton",
            "how do I start it?",
            "how to start it",
            "how does one run it?",
            "how do I start this?",
            "how do I start a gateway and workers?",
            "how do you start Baton?",
            "how do I run Baton?",
            "how to run it",
            "how can I launch Baton?",
            "how do I get started?",
            "which command starts Baton?",
            "how do I install and run Baton?",
            "what command do I need?",
            *(
                f"how do I {act} Baton on my {place}?"
                for act in ("run", "start", "install", "try")
                for place in ("laptop", "computer", "machine", "server", "desktop", "box")
            ),
            "what do I run?",
            "where do I begin?",
            "how can I try it?",
            "start Baton",
            "show me how to start it",
            "how do I set up Baton on my machine?",
            "how do I use Baton?",
        ),
        held_out=("how does one start this thing?", "what do I type to start Baton?"),
        slots=(
            (
                "On one machine, run `baton up`.",
                "Type `baton up` in a terminal.",
                "Start it with `baton up`.",
            ),
            (
                "It starts a gateway, a prefill worker and a decode worker.",
                "That brings up the gateway and the workers together.",
            ),
            (
                "Then send a chat request to the gateway, as to any OpenAI-style service.",
                "Then ask the gateway something with any OpenAI-style client.",
            ),
        ),
        more=(
            "On many machines, put stateless gateways behind a load balancer.",
            "Workers find each other by DNS, Kubernetes or etcd when there are many machines.",
        ),
        weight=2.0,
    ),
    Topic(
        name="gateway",
        nouns=("the gateway", "a gateway", "the Baton gateway"),
        questions=("what does the gateway do?", "which part talks to the client?"),
        held_out=("what is the gateway responsible for?",),
        slots=(
            (
                "The gateway is the part of Baton that clients talk to.",
                "The gateway stands in front and turns requests into streams of tokens.",
            ),
            (
                "It checks a request, renders the chat template, tokenises and picks the workers.",
                "It admits a request, chooses a decode worker and usually a prefill worker.",
            ),
            (
                "It sends the answer as server-sent events and keeps no KV.",
                "It is the only place where a request waits, and KV never passes through it.",
            ),
        ),
        more=(
            "Gateways are stateless, so any number of them can stand behind a load balancer.",
            "It replays every token it has received when a request must be placed again.",
        ),
    ),
    Topic(
        name="prefill_worker",
        nouns=("the prefill worker", "a prefill worker", "prefill workers"),
        questions=("what does a prefill worker do?",),
        held_out=("what is a prefill worker responsible for?",),
        slots=(
            (
                "A prefill worker turns prompts into KV cache.",
                "A prefill worker reads prompts and computes their keys and values.",
            ),
            (
                "It works in chunks and offers each layer as soon as it is computed.",
                "Each finished layer is handed over while the next is being computed.",
            ),
            (
                "It also samples the first token, so that the answer can begin at once.",
                "The decode worker reads what it offers and copies it into its own blocks.",
            ),
        ),
    ),
    Topic(
        name="decode_worker",
        nouns=("the decode worker", "a decode worker", "decode workers"),
        questions=("what does a decode worker do?",),
        held_out=("what is a decode worker responsible for?",),
        slots=(
            (
                "A decode worker writes answers, token by token, for many sequences at once.",
                "A decode worker holds a paged KV cache and generates from it.",
            ),
            (
                "It reserves all blocks for a prompt at once and calls a prefill worker.",
                "It fetches the KV that a prefill worker offers into its own blocks.",
            ),
            (
                "When the last block is in, the sequence joins the running batch.",
                "It can also prefill locally when that is cheaper.",
            ),
        ),
    ),
)
