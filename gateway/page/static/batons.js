/** The baton: KV on its way from a prefill worker's card to a decode worker's. */

import { byId, mark, svg } from "./dom.js";

/** Of more hand-offs at once, the newest are drawn. */
const SHOWN = 24;
/** Seconds that a baton takes at least: a hand-off may be over before it could be seen. */
const SHORTEST = 0.7;

export class Batons {
  #fleet;
  #cards;
  #under = new Map(); // by leg: {at (0 to 1), from, to, group}
  #drawing = byId("batons");
  #side = byId("decode");
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  #last = 0;

  constructor(fleet, cards) {
    this.#fleet = fleet;
    this.#cards = cards;
  }

  /** A leg may have KV to hand over. */
  begin(leg) {
    if (!leg.prefill || leg.prefill === leg.decode || this.#under.has(leg)) return;
    const oldest = this.#under.keys().next().value;
    if (this.#under.size >= SHOWN) this.#drop(oldest);
    const line = svg("path", { class: "line" });
    const baton = svg("rect", { class: "baton", x: -15, y: -4.5, width: 30, height: 9, rx: 4.5 });
    const group = svg("g", {}, line, baton);
    this.#drawing.append(group);
    this.#under.set(leg, { progress: 0, line, baton, group });
  }

  /** Draw them where they are now; returns whether any is under way. */
  draw(time) {
    const passed = Math.min((time - this.#last) / 1000, 0.1);
    this.#last = time;
    if (!this.#under.size) return false;
    const area = this.#drawing.getBoundingClientRect();
    for (const [leg, one] of this.#under) {
      const from = this.#cards.of(this.#fleet.byId(leg.prefill));
      const to = this.#cards.of(this.#fleet.byId(leg.decode));
      const failed = leg.endedAt && !leg.kvDone && !leg.points.length;
      if (!from || !to || failed || one.progress >= 1) {
        this.#drop(leg);
        continue;
      }
      const arrived = leg.kvDone || leg.points.length || leg.endedAt;
      const target = arrived ? 1 : leg.totalBytes ? leg.bytes / leg.totalBytes : 0;
      one.progress = Math.min(target, one.progress + passed / SHORTEST);
      this.#place(one, from.getBoundingClientRect(), to.getBoundingClientRect(), area);
    }
    return this.#under.size > 0;
  }

  #drop(leg) {
    this.#under.get(leg).group.remove();
    this.#under.delete(leg);
  }

  #place({ progress, line, baton }, from, to, area) {
    mark(line, "d", way(from, to, area, this.#side.getBoundingClientRect().left));
    if (this.#still.matches) {
      mark(baton, "visibility", "hidden");
      return;
    }
    const length = line.getTotalLength();
    const here = line.getPointAtLength(progress * length);
    const ahead = line.getPointAtLength(Math.min(progress * length + 1, length));
    const behind = line.getPointAtLength(Math.max(progress * length - 1, 0));
    const angle = (Math.atan2(ahead.y - behind.y, ahead.x - behind.x) * 180) / Math.PI;
    mark(baton, "transform", `translate(${here.x.toFixed(1)} ${here.y.toFixed(1)}) rotate(${angle.toFixed(1)})`);
  }
}

/** From card to card; to one that stands behind another, through the gap above it. */
function way(from, to, area, side) {
  const line = (ax, ay, bx, by, dx, dy) =>
    `M${ax} ${ay} C${ax + dx} ${ay + dy} ${bx - dx} ${by - dy} ${bx} ${by}`;
  const [left, top] = [area.left, area.top];
  if (to.left < from.right) {
    const [ax, ay, bx, by] = [from.left + from.width / 2 - left, from.bottom - top, to.left + to.width / 2 - left, to.top - top];
    return line(ax, ay, bx, by, 0, (by - ay) / 2);
  }
  const [ax, ay, edge] = [from.right - left, from.top + from.height / 2 - top, side - left];
  if (to.left < side + 8) return line(ax, ay, edge, to.top + to.height / 2 - top, (edge - ax) / 2, 0);
  return `${line(ax, ay, edge, to.top - 6 - top, (edge - ax) / 2, 0)} H${to.left + 30 - left}`;
}
