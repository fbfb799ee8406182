/** A card for each worker, on its side. */

import { arrange, byId, el, mark, say } from "./dom.js";
import { sideOf } from "./fleet.js";
import { count, milliseconds, rate, several } from "./format.js";

/** Cards of a side; of more, those with something to say. */
const SHOWN = 48;
const WORDS = { prefill: "prefill", decode: "decode", both: "prefill + decode", unknown: "role not known yet" };
const BLOCKS = ["owned", "cached", "quarantined", "free"];

export class Cards {
  #fleet;
  #cards = new Map(); // by address

  constructor(fleet) {
    this.#fleet = fleet;
  }

  /** The card of a worker; undefined when it is not shown. */
  of(worker) {
    return worker && this.#cards.get(worker.address)?.root;
  }

  draw() {
    const sides = { prefill: [], decode: [] };
    for (const worker of this.#fleet.workers.values()) {
      sides[sideOf(worker) === "prefill" ? "prefill" : "decode"].push(worker);
    }
    for (const [side, workers] of Object.entries(sides)) {
      // A side gets room by what is there.
      byId("fleet").style.setProperty(`--${side}`, `${Math.min(2, Math.max(1, Math.ceil(workers.length / 2)))}fr`);
      const named = workers.map((worker) => [worker, this.#fleet.nameOf(worker)]);
      named.sort(([, a], [, b]) => a.localeCompare(b, "en", { numeric: true }));
      const trouble = ([worker]) => badges(worker).length > 0;
      const shown = [...named.filter(trouble), ...named.filter((one) => !trouble(one))].slice(0, SHOWN);
      const kept = named.length > SHOWN ? shown : named;
      arrange(byId(side), [
        ...kept.map(([worker, name]) => this.#card(worker, name)),
        ...notes(side, named.length, this.#cards),
      ]);
    }
    for (const address of this.#cards.keys()) {
      if (!this.#fleet.workers.has(address) && !NOTES.has(address)) this.#cards.delete(address);
    }
  }

  #card(worker, name) {
    const side = sideOf(worker);
    let card = this.#cards.get(worker.address);
    if (card?.side !== side) this.#cards.set(worker.address, (card = made(side)));
    fill(card, worker, name);
    return card.root;
  }
}

const NOTES = new Set(["note prefill", "note decode"]);

function notes(side, number, cards) {
  const key = `note ${side}`;
  if (!cards.has(key)) cards.set(key, { root: el("li", { class: "note" }) });
  const note = cards.get(key).root;
  if (number > SHOWN) say(note, `and ${count(number - SHOWN)} more`);
  else if (number) return [];
  else say(note, side === "prefill" ? "None. Decode workers compute prompts themselves." : "None.");
  return [note];
}

function made(side) {
  const part = (tag, name, ...children) => el(tag, { class: name }, ...children);
  const card = {
    side,
    name: part("h4", "name"),
    where: part("span", "where"),
    state: part("span", "state"),
    badges: part("p", "badges"),
    bar: part("div", "blocks"),
    rate: part("dd", "number"),
    queue: el("dd"),
    batch: el("dd"),
    step: el("dd"),
    kv: el("dd"),
    segments: {},
  };
  mark(card.bar, "role", "img");
  for (const kind of BLOCKS) card.bar.append((card.segments[kind] = part("i", kind)));
  const glyphs = side === "both" ? ["p", "d"] : side === "prefill" ? ["p"] : ["d"];
  const facts = el("dl", {},
    el("div", { class: "big" }, card.rate, el("dt", {}, side === "prefill" ? "prompt tokens / s" : "tokens / s")),
    el("div", {}, el("dt", {}, side === "prefill" ? "queued tokens" : "waiting"), card.queue),
    el("div", {}, el("dt", {}, side === "prefill" ? "prompts" : "batch"), card.batch),
    el("div", {}, el("dt", {}, "last step"), card.step),
    el("div", { class: "kv" }, card.bar, el("dt", {}, "KV"), card.kv),
  );
  card.root = el("li", { class: `card ${side}` },
    el("div", { class: "head" },
      ...glyphs.map((letter) => el("span", { class: `glyph ${letter}`, "aria-hidden": "true" }, letter.toUpperCase())),
      card.name, el("span", { class: "role" }, WORDS[side]), card.where, card.state),
    card.badges, facts);
  return card;
}

function fill(card, worker, name) {
  say(card.name, name);
  say(card.where, worker.address);
  mark(card.where, "title", worker.id ? `instance ${worker.id}` : null);
  const state = worker.draining ? "draining" : worker.state;
  say(card.state, state);
  mark(card.state, "data-state", state);
  const told = badges(worker);
  arrange(card.badges, told.map(({ kind, text }, index) => {
    const badge = card.badges.children[index] ?? el("span");
    mark(badge, "class", `badge ${kind}`);
    say(badge, text);
    return badge;
  }));
  mark(card.root, "data-verdict", told[0]?.kind ?? null);
  mark(card.root, "data-worker", name);
  const prefills = card.side === "prefill";
  const speed = prefills ? worker.prompt_tokens_per_s : worker.tokens_per_s;
  say(card.rate, rate(speed));
  mark(card.root, "data-busy", worker.running + worker.waiting > 0 ? "yes" : null);
  // A decode worker has a queue of tokens only where it computes prompts itself.
  const tokens = worker.queued_tokens ? `, ${several(worker.queued_tokens, "token")}` : "";
  say(card.queue, prefills ? count(worker.queued_tokens) : count(worker.waiting) + tokens);
  const room = worker.max_running ? ` of ${count(worker.max_running)}` : "";
  say(card.batch, prefills ? count(worker.running + worker.waiting) : count(worker.running) + room);
  say(card.step, worker.last_step_ms ? milliseconds(worker.last_step_ms) : "–");
  blocks(card, worker.blocks);
}

function blocks(card, states) {
  const total = BLOCKS.reduce((sum, kind) => sum + states[kind], 0);
  for (const kind of BLOCKS) {
    // What is there is seen, however little it is.
    const share = total ? (states[kind] / total) * 100 : 0;
    card.segments[kind].style.flexBasis = `${share && Math.max(share, 2)}%`;
  }
  say(card.kv, `${count(states.owned)} owned · ${count(states.cached)} cached · ${count(states.free)} free`
    + (states.quarantined ? ` · ${count(states.quarantined)} quarantined` : ""));
  mark(card.bar, "aria-label", `KV blocks, ${count(total)} in all: ${card.kv.textContent}`);
}

function badges(worker) {
  const found = [];
  if (worker.state !== "healthy") {
    found.push({ kind: "out", text: worker.reason ? `${worker.state}: ${worker.reason}` : worker.state });
  }
  if (worker.draining) found.push({ kind: "out", text: "draining: takes nothing new" });
  if (worker.breaker !== "closed") found.push({ kind: "out", text: BREAKER[worker.breaker] ?? worker.breaker });
  const { verdict } = worker;
  if (verdict) found.push({ kind: verdict.kind, text: `${verdict.kind}: ${verdict.text}` });
  return found;
}

const BREAKER = {
  open: "left alone for a while after failures",
  "half-open": "may be tried again",
  trial: "being tried again",
};
