/** The live feed: server-sent events, followed again whenever they end. */

const EVENTS = [
  "snapshot", "gateway", "worker", "worker_gone", "lost", "queued", "placed", "prefill", "kv",
  "first_token", "decode", "attempt_ended", "ended",
];
/** Seconds until the next try: doubled from the first to the last. */
const FIRST_PAUSE = 0.5;
const LONGEST_PAUSE = 8;

/**
 * Follow `url` for ever. `hear(type, data)` is called for each event, `stand(state)` when the
 * connection is "live" or "lost".
 */
export function follow(url, hear, stand) {
  let pause = FIRST_PAUSE;

  function connect() {
    const source = new EventSource(url);
    for (const type of EVENTS) {
      source.addEventListener(type, (event) => {
        if (type === "snapshot") {
          pause = FIRST_PAUSE;
          stand("live");
        }
        hear(type, JSON.parse(event.data));
        if (type === "lost") again(0); // for another snapshot
      });
    }
    source.addEventListener("error", () => {
      stand("lost");
      again(pause);
      pause = Math.min(2 * pause, LONGEST_PAUSE);
    });

    // Not by the browser's own retry: that gives up where a proxy answers for the gateway.
    function again(seconds) {
      source.close();
      setTimeout(connect, 1000 * seconds);
    }
  }

  connect();
}
