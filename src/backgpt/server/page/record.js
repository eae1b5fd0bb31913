/** What a story is, and how it came to be: what is told of it, and the record saved with it. */

import { wordCount } from "./text.js";

/**
 * A step is a request, with the number of the choice that was taken, or a change by hand, with the
 * whole text after it. `unheeded` names the hints that the text does not obey.
 * @typedef {import("./settings.js").Completion & {choice: number}} Asked
 * @typedef {{by_hand: string, text: string}} Changed
 * @typedef {Asked | Changed} Step
 * @typedef {{written: string, finish: import("./writing.js").Finish, unheeded: string[],
 *   steps: Step[]}} Draft
 * @typedef {{ending: string, drafts: Draft[]}} Story never changed, only replaced
 */

/**
 * @param {Story} story
 * @param {Draft} draft
 */
export function textOf({ ending }, { written }) {
  return written + ending;
}

/**
 * Return a draft after a change by hand.
 * @param {Draft} draft
 * @param {{how: string, written: string, ending: string}} change what was done and what then stands
 * @returns {Draft}
 */
export function changedByHand({ finish, steps }, { how, written, ending }) {
  const step = { by_hand: how, text: written + ending };
  return { written, finish, unheeded: [], steps: [...steps, step] };
}

/**
 * Return the seed of what was written last.
 * @param {Draft} draft
 */
export function seedOf({ steps }) {
  return steps.findLast((step) => "seed" in step)?.seed;
}

/**
 * Say which hints a draft does not obey, if there are any; more may be written as long as it has
 * not come to its beginning.
 * @param {Draft} draft
 */
export function unheededBy({ unheeded, finish }) {
  if (!unheeded.length) return "";
  return `not heeded${finish === "stop" ? "" : " so far"}: ${unheeded.join(", ")}`;
}

/**
 * Say in one line what stands on the desk.
 * @param {Story} story
 */
export function statusOf(story) {
  const [draft] = story.drafts;
  if (!draft) return "";
  const seed = `seed ${seedOf(draft)}`;
  if (story.drafts.length > 1) return `${story.drafts.length} beginnings · ${seed}`;
  const last = draft.steps.at(-1);
  const changed = last && "by_hand" in last ? "changed by hand" : "";
  const parts = [wordCount(textOf(story, draft)), seed, changed, unheededBy(draft)];
  return parts.filter(Boolean).join(" · ");
}

/**
 * Return what is saved: the text, and the steps that lead to it again.
 * @param {Story} story
 */
export function recordOf(story) {
  const [draft] = story.drafts;
  const { finish, steps } = draft;
  const text = textOf(story, draft);
  return { text, ending: story.ending, finish_reason: finish, seed: seedOf(draft), steps };
}
