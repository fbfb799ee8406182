/** What the feed has told so far: the gateway, its workers, the newest requests. */

import { Request } from "./request.js";

/** Requests that are kept; of more, the oldest are let go. */
const KEPT = 50;
/** Names of workers that are gone are kept, up to so many in all. */
const NAMES = 256;

export class Fleet {
  gateway = null;
  workers = new Map(); // by address
  requests = new Map(); // by id, the oldest first
  #mine = new Set(); // ids of requests asked from here
  #ids = new Map(); // workers by the ids that requests call them
  #named = new Map(); // names by these, also of workers that are gone
  #names = new Map(); // by address: {side, name}
  #offset = Infinity; // seconds from the gateway's clock to ours, at least

  /** Seconds by the gateway's clock, as well as can be known. */
  get now() {
    return Date.now() / 1000 - (this.#offset === Infinity ? 0 : this.#offset);
  }

  hear(type, told) {
    if (told.at) this.#offset = Math.min(this.#offset, Date.now() / 1000 - told.at);
    if (type === "snapshot") this.#begin(told);
    else if (type === "gateway") this.gateway = told;
    else if (type === "worker") this.#worker(told);
    else if (type === "worker_gone") this.#gone(told);
    else if (told.request) this.#request(type, told);
  }

  /** Whether there may be more requests than are kept. */
  get full() {
    return this.requests.size >= KEPT;
  }

  /** This request was asked from here. */
  own(id) {
    this.#mine.add(id);
    if (this.#mine.size > KEPT) this.#mine.delete(this.#mine.values().next().value);
    const request = this.requests.get(id);
    if (request) request.mine = true;
  }

  /** A worker by the id that requests call it; undefined when it is gone. */
  byId(id) {
    return this.#ids.get(id);
  }

  /** P1, D2, ...: short, and the same for as long as it is there and keeps its side. */
  nameOf(worker) {
    const side = sideOf(worker);
    const known = this.#names.get(worker.address);
    if (known?.side === side) return known.name;
    this.#names.delete(worker.address);
    for (const address of this.#names.keys()) {
      if (this.#names.size >= NAMES && !this.workers.has(address)) this.#names.delete(address);
    }
    const taken = new Set([...this.#names.values()].map((one) => one.name));
    const letter = { prefill: "P", decode: "D", both: "B", unknown: "W" }[side];
    let number = 1;
    while (taken.has(letter + number)) number++;
    this.#names.set(worker.address, { side, name: letter + number });
    return letter + number;
  }

  /** How requests' legs call a worker, also when it is gone. */
  nameOfId(id) {
    return this.#named.get(id) ?? id;
  }

  #begin({ at, gateway, workers, requests }) {
    this.#offset = Date.now() / 1000 - at;
    this.gateway = gateway;
    this.workers.clear();
    this.#ids.clear();
    for (const worker of [...workers].sort((a, b) => a.address.localeCompare(b.address, "en", { numeric: true }))) {
      this.#worker(worker);
    }
    const open = new Set(requests.map((one) => one.request));
    for (const request of this.requests.values()) {
      // Ended while nobody looked.
      if (!request.ended && !open.has(request.id)) request.end({ at, reason: "unseen", status: null });
    }
    for (const one of requests.slice(-KEPT)) {
      if (!this.requests.has(one.request)) this.#keep(Request.standing(one, at));
    }
  }

  #worker(told) {
    const before = this.workers.get(told.address);
    // One that has to be dialled again says nothing of itself; its side is still the same.
    const worker = told.roles.length || !before ? told : { ...told, roles: before.roles };
    this.workers.set(told.address, worker);
    if (before && before.id !== told.id) this.#ids.delete(before.id);
    if (told.id) {
      this.#ids.set(told.id, worker);
      this.#named.set(told.id, this.nameOf(worker));
    }
  }

  #gone({ id, address }) {
    this.#ids.delete(id);
    for (const old of this.#named.keys()) {
      if (this.#named.size > NAMES && !this.#ids.has(old)) this.#named.delete(old);
    }
    // One that never reported has no id.
    if (this.workers.get(address)?.id === id) this.workers.delete(address);
  }

  #request(type, told) {
    if (type === "queued") {
      const { request, at, prompt_tokens, max_tokens, choices } = told;
      this.#keep(new Request(request, at, prompt_tokens, max_tokens, choices));
      return;
    }
    const request = this.requests.get(told.request);
    if (!request) return; // let go
    if (type === "ended") request.end(told);
    else request[type]?.(told);
  }

  #keep(request) {
    request.mine = this.#mine.has(request.id);
    this.requests.set(request.id, request);
    if (this.requests.size <= KEPT) return;
    const over = [...this.requests.values()].find((one) => one.ended) ?? this.requests.values().next().value;
    this.requests.delete(over.id);
  }
}

/** "prefill", "decode", "both" or, before it has said so, "unknown". */
export function sideOf(worker) {
  if (!worker.roles.length) return "unknown";
  return worker.roles.length > 1 ? "both" : worker.roles[0];
}
