/** Talking to the server: JSON, streams of events, the API key, and errors in plain words. */

import { store, stored } from "./storage.js";

const KEY = "backgpt.key";

/**
 * Return whether a text can be sent as an API key: a header takes no other characters.
 * @param {string} text
 */
export function canBeKey(text) {
  return /^[\x21-\x7e]+$/.test(text);
}

/** What went wrong, in one line that says what to do. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} [status] 0 when no answer came
   * @param {string | null} [code] what went wrong, for programs
   */
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** @type {(refused: boolean) => Promise<string|null>} */
let askForKey = async () => null;
let isBack = () => {};
let wasAway = false;

/**
 * Say how to get an API key when the server wants one.
 * @param {(refused: boolean) => Promise<string|null>} ask gives null when the user would rather
 *   not; `refused` is whether the server did not accept the last one
 */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/**
 * Say what to do when the server answers again after it did not, or wanted a key: it may be
 * another one.
 * @param {() => void} act
 */
export function onServerBack(act) {
  isBack = act;
}

/**
 * Send a request and return the answer's JSON.
 * @param {string} path
 * @param {object} [body] without one it is a GET
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function request(path, body, signal) {
  const response = await send(path, body, signal);
  return await response.json();
}

/**
 * Send a request and yield the events of its answer as they come.
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal
 * @param {string} whenBroken what to do when the connection breaks after something came
 * @returns {AsyncGenerator<any>}
 */
export async function* stream(path, body, signal, whenBroken) {
  const response = await send(path, { ...body, stream: true }, signal);
  let came = false;
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(`${event.error.message}`, response.status);
      came = true;
      yield event;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
  }
  wasAway = true;
  const now = came ? `. What came stays; ${whenBroken}.` : " before anything came: try again.";
  throw new ApiError(`The connection broke${now}`);
}

/**
 * Yield the data of each server-sent event.
 * @param {Response} response
 */
async function* events(response) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (waiting + value).split("\n");
      waiting = lines.pop() ?? "";
      for (const line of lines) {
        // An event of this server is one line of data; comments and blank lines mean nothing.
        if (line.startsWith("data:")) yield line.slice("data:".length).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>}
 */
async function send(path, body, signal) {
  for (;;) {
    const key = stored(KEY);
    /** @type {Record<string, string>} */
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const settings = { method: body ? "POST" : "GET", headers, signal };
    let response;
    try {
      response = await fetch(path, body ? { ...settings, body: JSON.stringify(body) } : settings);
    } catch (error) {
      if (signal?.aborted) throw error;
      wasAway = true;
      throw new ApiError("The server cannot be reached: see whether it still runs, and try again.");
    }
    if (response.ok) {
      if (wasAway) isBack();
      wasAway = false;
      return response;
    }
    if (response.status === 401 || response.status === 503) wasAway = true;
    if (response.status !== 401) throw await explained(response);
    const given = await askForKey(key !== null);
    if (given === null)
      throw new ApiError("This server asks for an API key: try again to give it.", 401);
    store(KEY, given);
  }
}

/** @param {Response} response */
async function explained(response) {
  const { status } = response;
  if (status === 429) {
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10) || 5;
    return new ApiError(`The server is busy: try again in ${seconds} s.`, status);
  }
  if (status === 503)
    return new ApiError("The server is not ready: try again in a moment.", status);
  const said = await response.json().catch(() => null);
  const { message = `The server answered ${status}: try again.`, code = null } = said?.error ?? {};
  return new ApiError(message, status, code);
}
