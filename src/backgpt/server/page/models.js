/** The models of the server, and the fields that choose one. */

import { make } from "./dom.js";

/**
 * `bridges` is whether it writes from an opening to an ending, which takes both directions.
 * @typedef {{directions: string[], bridges: boolean, hints: boolean, chat: boolean,
 *   block_size: number}} Abilities
 * @typedef {{id: string, backgpt?: Partial<Abilities>}} Model
 */

/**
 * Return what a model can do.
 * @param {Model | undefined} model
 * @returns {Abilities}
 */
export function abilities(model) {
  const known = model?.backgpt ?? {};
  const directions = known.directions ?? ["backward"];
  const least = { hints: false, chat: false, block_size: 512 };
  return { ...least, ...known, directions, bridges: directions.length > 1 };
}

/**
 * Offer models in a field, keeping the one that is chosen, or was before a reload (`data-wanted`);
 * at first it is one that takes hints.
 * @param {HTMLSelectElement} field
 * @param {Model[]} models
 */
export function offerModels(field, models) {
  const wanted = field.value || field.dataset.wanted;
  const chosen = models.find(({ id }) => id === wanted);
  const first = chosen ?? models.find((model) => abilities(model).hints) ?? models[0];
  field.replaceChildren(...models.map(({ id }) => make("option", { value: id }, id)));
  if (first) field.value = first.id;
}
