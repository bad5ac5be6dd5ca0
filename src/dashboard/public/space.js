import { call, volumePath } from "./api.js";
import { can } from "./features.js";

/* What a volume takes on disk. */

/** @typedef {{ exclusiveBytes: number, sharedBytes: number }} Space bytes on disk, of a volume with its snapshots */

export const canTellSpace = () => can("GET", "/v1/volumes/{name}/space");

/**
 * The server reads many files to tell: it is asked seldom.
 * @param {string} name
 * @param {AbortSignal} [signal]
 * @returns {Promise<Space>}
 */
export const readSpace = (name, signal) => call(`${volumePath(name)}/space`, signal === undefined ? {} : { signal });
