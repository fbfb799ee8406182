/** How fast a worker is: what its decode steps take, how fast its streams are, and how many prompt
 * tokens it computes while it has any to compute. Of the last seconds, so that a change shows soon. */

import { median } from "./format.js";

/** Seconds that are looked back upon. */
const WINDOW = 10;
/** A prefill worker may be idle for long: seconds of computing, and how old they may be. */
const BUSY = 4;
const OLD = 60;

export class Pace {
  #steps = []; // {at, ms, running}
  #streams = []; // {at, rate}
  #under = new Map(); // prompts being computed: tokens so far, by request and attempt
  #parts = []; // {at, busy (seconds), tokens}
  #last = 0;

  /** The worker's word of itself. */
  stepped({ at, running, last_step_ms }) {
    this.#steps = this.#steps.filter((step) => at - step.at < WINDOW);
    if (running && last_step_ms) this.#steps.push({ at, ms: last_step_ms, running });
  }

  /** A `decode` event of a stream that it has. */
  streamed({ at, tokens_per_s }) {
    this.#streams = this.#streams.filter((one) => at - one.at < WINDOW).slice(-400);
    if (tokens_per_s) this.#streams.push({ at, rate: tokens_per_s });
  }

  /** A `prefill` event of this worker. */
  computed({ at, request, attempt, computed, total }) {
    const key = `${request} ${attempt}`;
    const busy = this.#under.size ? at - this.#last : 0;
    const before = this.#under.get(key) ?? computed;
    this.#under.set(key, computed);
    if (computed >= total) this.#under.delete(key);
    this.#last = at;
    this.#parts.push({ at, busy, tokens: computed - before });
    this.#parts = this.#parts.filter((part) => at - part.at < OLD).slice(-400);
  }

  /** A request has nothing to compute any more. */
  left(request) {
    for (const key of this.#under.keys()) if (key.startsWith(`${request} `)) this.#under.delete(key);
  }

  /** Milliseconds of a decode step; null when nothing is known. */
  get step() {
    return this.#steps.length < 3 ? null : median(this.#steps.map((step) => step.ms));
  }

  /** Tokens per second of each stream; null when nothing is known. */
  get stream() {
    return this.#streams.length < 3 ? null : median(this.#streams.map((one) => one.rate));
  }

  /** Sequences in its steps. */
  get batch() {
    return median(this.#steps.map((step) => step.running));
  }

  /** Prompt tokens per second of computing; null when nothing is known. */
  get speed() {
    let [busy, tokens] = [0, 0];
    for (let i = this.#parts.length - 1; i >= 0 && busy < BUSY; i--) {
      busy += this.#parts[i].busy;
      tokens += this.#parts[i].tokens;
    }
    return busy > 0.05 && tokens >= 32 ? tokens / busy : null;
  }
}
