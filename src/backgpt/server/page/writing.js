/** Beginnings as they are written: from the server's stream to pieces that are shown at a pace. */

import { ApiError, stream } from "./api.js";
import { Pace } from "./pace.js";
import { units } from "./text.js";

/**
 * How a beginning ended: where the text begins, because there was no more room, because the reader
 * stopped it, or because the connection broke.
 * @typedef {"stop" | "length" | "stopped" | "broken"} Finish
 * @typedef {{words?: boolean | null, length?: boolean | null, missing?: string[] | null,
 *   n_words?: number | null}} Obeyed what the server says of words that are wanted, and of a length
 * @typedef {{written: string, finish: Finish, obeyed: Obeyed | null}} Beginning
 */

const WHEN_BROKEN = "go on from it, or write again";

/**
 * Write beginnings and show them; what has been shown when it ends early is kept.
 * @param {import("./settings.js").Completion} body
 * @param {object} options
 * @param {(index: number, piece: string) => void} options.show puts a piece in front
 * @param {() => number} options.pace pieces in a second
 * @param {AbortSignal} options.signal
 * @returns {Promise<{beginnings: Beginning[], problem: string}>}
 */
export async function write(body, { show, pace, signal }) {
  /** @type {Beginning[]} */
  const beginnings = Array.from({ length: body.n }, () => ({
    written: "",
    finish: "broken",
    obeyed: null,
  }));
  const paces = beginnings.map(
    (beginning, index) =>
      new Pace((piece) => {
        beginning.written = piece + beginning.written;
        show(index, piece);
      }, pace),
  );
  signal.addEventListener("abort", () => paces.forEach((one) => one.stop()));
  let problem = "";
  try {
    for await (const event of stream("v1/completions", live(body), signal, WHEN_BROKEN)) {
      for (const choice of event.choices ?? []) {
        const pieces = body.prompt ? leftward(choice.text) : [choice.text];
        for (const piece of pieces) if (piece) paces[choice.index].push(piece);
        if (!choice.finish_reason) continue;
        if (body.prompt) paces[choice.index].push(body.prompt);
        beginnings[choice.index].finish = body.prompt ? "stop" : choice.finish_reason;
        beginnings[choice.index].obeyed = choice.backgpt?.obeyed ?? null;
      }
    }
  } catch (error) {
    if (!signal.aborted && !(error instanceof ApiError)) throw error;
    if (error instanceof ApiError) problem = error.message;
  }
  await Promise.all(paces.map((one) => one.shown()));
  if (signal.aborted) {
    for (const beginning of beginnings)
      Object.assign(beginning, { finish: "stopped", obeyed: null });
  }
  return { beginnings, problem };
}

/**
 * Split a text into words, the last first: a bridge comes whole, and is shown as other texts are.
 * @param {string} text
 */
function leftward(text) {
  return units(text)
    .map(({ gap, word }) => gap + word)
    .reverse();
}

/** @param {import("./settings.js").Completion} body */
function live(body) {
  return { ...body, stream_options: { order: "prepend" } };
}
