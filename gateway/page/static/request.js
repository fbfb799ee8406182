/** One request, as the feed told of it: its attempts are legs, and each leg has its course. */

/** Points of a leg's decode kept; more are drawn together in pairs. */
const POINTS = 200;
/** A rate over fewer seconds says little: such a point is drawn as part of the one before. */
const SHORT = 0.05;

export class Request {
  constructor(id, arrived, promptTokens, maxTokens, choices) {
    this.id = id;
    this.arrived = arrived;
    this.promptTokens = promptTokens;
    this.maxTokens = maxTokens;
    this.choices = choices;
    this.legs = [];
    this.tokens = new Map(); // by choice
    this.rates = new Map(); // likewise: tokens per second
    this.waitingSince = arrived; // null while it is placed
    this.firstAt = null;
    this.ttft = null;
    this.ended = null;
    this.earlier = null; // until when nobody looked
    this.mine = false;
  }

  /** From a snapshot: what came before is not known. */
  static standing(told, at) {
    const { request, arrived, prompt_tokens, max_tokens, choices } = told;
    const made = new Request(request, arrived, prompt_tokens, max_tokens, choices);
    if (told.attempt === null) return made;
    made.earlier = at;
    made.tokens.set(0, told.tokens);
    made.placed({
      at, attempt: told.attempt, choices: [...Array(choices).keys()], decode: told.decode,
      prefill: told.prefill, cached: 0, tokens: told.prompt_tokens, waited_ms: 0,
    });
    if (told.phase === "decode") made.first_token({ at, attempt: told.attempt, choice: 0, ttft_ms: told.ttft_ms });
    return made;
  }

  get tokenCount() {
    return [...this.tokens.values()].reduce((sum, tokens) => sum + tokens, 0);
  }

  get tokenRate() {
    return [...this.rates.values()].reduce((sum, rate) => sum + rate, 0);
  }

  /** The latest leg. */
  get leg() {
    return this.legs.at(-1) ?? null;
  }

  /** When it had its first token and its KV was where it decodes; null before. */
  get handedOver() {
    const leg = this.legs[0];
    if (!leg) return this.ended && this.ended.at;
    const local = leg.computer === leg.decode;
    if (leg.firstAt && (leg.kvDone || local)) return Math.max(leg.firstAt, leg.kvDone ?? 0);
    return leg.decodeBegan ?? leg.endedAt;
  }

  queued() {}

  placed({ at, attempt, choices, decode, prefill, cached, tokens, waited_ms }) {
    this.legs.push({
      attempt, choices: new Set(choices), open: new Set(choices), decode, prefill, cached,
      total: tokens, placedAt: at, queuedAt: at - waited_ms / 1000, computer: prefill ?? decode,
      chunks: [], kv: [], layers: 0, totalLayers: 0, bytes: 0, totalBytes: 0, transport: null,
      computedAt: null, kvDone: null, firstAt: null, decodeBegan: null, points: [], lastAt: null,
      lastTokens: this.tokenCount, endedAt: null, reason: null, message: null,
    });
    this.waitingSince = null;
  }

  prefill({ at, attempt, worker, computed, cached, total }) {
    const leg = this.#of(attempt);
    if (!leg) return;
    leg.computer = worker;
    leg.cached = cached;
    leg.total = total;
    if (computed !== leg.chunks.at(-1)?.computed) leg.chunks.push({ at, computed });
    if (computed >= total) leg.computedAt ??= Math.min(at, leg.firstAt ?? at);
  }

  kv({ at, attempt, bytes, total_bytes, layers, total_layers, transport }) {
    const leg = this.#of(attempt);
    if (!leg) return;
    if (layers > leg.layers || !leg.kv.length) leg.kv.push(at);
    Object.assign(leg, { layers, totalLayers: total_layers, bytes, totalBytes: total_bytes, transport });
    if (bytes >= total_bytes) leg.kvDone ??= at;
  }

  first_token({ at, attempt, choice, ttft_ms }) {
    const leg = this.#of(attempt, choice);
    this.firstAt ??= at;
    this.ttft ??= ttft_ms;
    if (!this.earlier) this.tokens.set(choice, 1);
    if (!leg) return;
    leg.firstAt ??= at;
    leg.computedAt ??= at; // it was drawn where the prompt was computed
    leg.lastAt ??= at;
    leg.lastTokens = this.tokenCount;
  }

  decode({ at, attempt, choice, tokens, tokens_per_s }) {
    this.tokens.set(choice, tokens);
    this.rates.set(choice, tokens_per_s);
    const leg = this.#of(attempt, choice);
    if (leg) this.#point(leg, at, this.tokenRate);
  }

  attempt_ended({ at, attempt, choice, reason, message, tokens }) {
    this.tokens.set(choice, tokens);
    this.rates.delete(choice);
    const leg = this.#of(attempt, choice);
    if (!leg) return;
    leg.open.delete(choice);
    Object.assign(leg, { reason, message });
    if (leg.open.size) return;
    const before = leg.lastAt ?? leg.firstAt;
    if (before && at > before) {
      this.#point(leg, at, (this.tokenCount - leg.lastTokens) / Math.max(at - before, SHORT));
    }
    leg.endedAt = at;
    this.waitingSince = at;
  }

  end(told) {
    this.ended = told;
    this.waitingSince = null;
    for (const leg of this.legs) leg.endedAt ??= told.at;
  }

  #point(leg, at, rate) {
    leg.decodeBegan ??= leg.lastAt ?? at;
    if (leg.points.length >= POINTS) leg.points = joined(leg.points);
    const last = leg.points.at(-1);
    if (last && at - last.at < SHORT) last.at = at;
    else leg.points.push({ from: leg.lastAt ?? at, at, rate });
    leg.lastAt = at;
    leg.lastTokens = this.tokenCount;
  }

  #of(attempt, choice) {
    return this.legs.findLast(
      (leg) => leg.attempt === attempt && (choice === undefined || leg.choices.has(choice)),
    );
  }
}

function joined(points) {
  const pairs = [];
  for (let i = 0; i + 1 < points.length; i += 2) {
    const [a, b] = [points[i], points[i + 1]];
    const area = a.rate * (a.at - a.from) + b.rate * (b.at - b.from);
    pairs.push({ from: a.from, at: b.at, rate: area / Math.max(b.at - a.from, 1e-6) });
  }
  return points.length % 2 ? [...pairs, points.at(-1)] : pairs;
}
