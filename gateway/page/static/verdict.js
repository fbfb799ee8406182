/** Which workers are slow, in plain words: each beside the middle one of its side. */

import { sideOf } from "./fleet.js";
import { count, median, milliseconds } from "./format.js";

/** So many times slower than the others is slow. */
const SLOW = 2;
/** Steps that differ by less than this many milliseconds are alike. */
const ALIKE = 3;

/** Of each worker that stands out, by address: {kind: "slow" or "busy", text}. */
export function verdicts(fleet) {
  const found = new Map();
  for (const side of ["prefill", "decode", "both"]) {
    const those = [...fleet.workers.values()].filter((one) => sideOf(one) === side && one.state === "healthy");
    for (const worker of those) {
      const mine = fleet.paces.get(worker.address);
      const others = those.filter((one) => one !== worker).map((one) => fleet.paces.get(one.address));
      const verdict = (side !== "prefill" && bySteps(mine, others)) || (side !== "decode" && byPrompts(mine, others));
      if (verdict) found.set(worker.address, verdict);
    }
  }
  return found;
}

function bySteps(mine, others) {
  const step = mine.step;
  const usual = median(others.map((one) => one.step).filter((one) => one !== null));
  if (step === null || usual === null || step < SLOW * usual || step - usual < ALIKE) return null;
  const batch = median(others.filter((one) => one.step !== null).map((one) => one.batch));
  if (mine.batch > SLOW * batch + 2) {
    return { kind: "busy", text: `busy: ${count(mine.batch)} sequences, others ${count(batch)}` };
  }
  return { kind: "slow", text: `slow: step ${milliseconds(step)}, others ${milliseconds(usual)}` };
}

function byPrompts(mine, others) {
  const speed = mine.speed;
  const usual = median(others.map((one) => one.speed).filter((one) => one !== null));
  if (speed === null || usual === null || SLOW * speed > usual) return null;
  return { kind: "slow", text: `slow: ${count(speed)} prompt tokens/s, others ${count(usual)}` };
}
