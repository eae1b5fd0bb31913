/** What a story is, and how it came to be: what is told of it, and the record saved with it. */

import { countWords, inWords, units } from "./text.js";

export const NOTHING =
  "Nothing was written: to the model a text begins like this. Change its first words, or choose " +
  "a Length that it does not have yet.";

/**
 * A step is a request, with the number of the choice that was taken, or a change by hand, with the
 * whole text after it. After such a change nobody knows whether hints are obeyed.
 * @typedef {import("./settings.js").Completion & {choice: number}} Asked
 * @typedef {{by_hand: string, text: string}} Changed
 * @typedef {Asked | Changed} Step
 * @typedef {import("./writing.js").Beginning & {steps: Step[]}} Draft
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
  return { written, finish, obeyed: null, steps: [...steps, step] };
}

/**
 * Return the seed of what was written last.
 * @param {Draft} draft
 */
export function seedOf({ steps }) {
  return steps.findLast((step) => "seed" in step)?.seed;
}

/**
 * Return whether the model let a text begin with what was given, and wrote nothing.
 * @param {import("./writing.js").Beginning} beginning
 */
export function isEmpty({ written, finish }) {
  return !written && finish === "stop";
}

/**
 * Say how many words a draft has, and what it lacks of the length and the words that were asked
 * for; more may be written as long as it has not come to its beginning.
 * @param {string} ending
 * @param {Draft} draft
 * @returns {string[]}
 */
export function toldOf(ending, draft) {
  const { written, finish, obeyed, steps } = draft;
  const soFar = finish === "stop" ? "" : " so far";
  const count = countWords(written + ending);
  const last = steps.at(-1);
  const parts = [inWords(count)];
  if (obeyed?.length === false && last && "suffix" in last)
    parts[0] = `${inWords(obeyed.n_words ?? count)}, not ${last.backgpt?.length}${soFar}`;
  if (isEmpty(draft) && last && "suffix" in last) parts.unshift("nothing was written");
  if (obeyed?.missing?.length) parts.push(`missing${soFar}: ${obeyed.missing.join(", ")}`);
  return parts;
}

/**
 * Say how much the model reads of the text that it writes before, if that is not all of it.
 * @param {string} ending
 * @param {import("./settings.js").Completion | Changed} [step]
 */
export function readOf(ending, step) {
  if (!step || !("suffix" in step) || !step.backgpt?.continues) return "";
  const { suffix } = step;
  const isOneWord = units(suffix).length === 1; // as in a script without white space
  const much = isOneWord ? `${[...suffix].length} characters` : inWords(countWords(suffix));
  const rest = ending.startsWith(suffix) ? "the ending" : "what follows";
  return `it reads only the first ${much} of ${rest}`;
}

/**
 * Say in one line what stands on the desk.
 * @param {Story} story
 */
export function statusOf(story) {
  const [draft] = story.drafts;
  if (!draft) return "";
  const { length } = story.drafts;
  const told = length > 1 ? [`${length} beginnings`] : toldOf(story.ending, draft);
  const last = draft.steps.at(-1);
  const changed = last && "by_hand" in last ? "changed by hand" : "";
  const parts = [...told, `seed ${seedOf(draft)}`, changed, readOf(story.ending, last)];
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
