// Every error a caller can meet: one class for each code of the protocol.

export interface ErrorParts {
  retryable?: boolean;
  phase?: string;
  worker?: string;
  attempt?: number;
  details?: Record<string, unknown>;
  cause?: unknown;
}

/** Base of all errors of this package; switch on `code`. */
export class VllmportError extends Error {
  readonly code: string = "error";
  /** Whether the same call may succeed if it is made again. */
  readonly retryable: boolean;
  /** Where it happened: "connect", "queue", "load", "decode", … or "". */
  readonly phase: string;
  /** Id of the worker concerned, or "". */
  readonly worker: string;
  /** Which dispatch of the call failed, from 1; 0 if it never left the queue. */
  readonly attempt: number;
  /** Plain data that belongs to the error. */
  readonly details: Record<string, unknown>;

  constructor(message: string, parts: ErrorParts = {}) {
    super(message, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.name = new.target.name;
    this.retryable = parts.retryable ?? false;
    this.phase = parts.phase ?? "";
    this.worker = parts.worker ?? "";
    this.attempt = parts.attempt ?? 0;
    this.details = parts.details ?? {};
  }
}

/** Nobody answers at the endpoint. */
export class ConnectFailed extends VllmportError {
  override readonly code = "connect_failed";
  constructor(message: string, parts: ErrorParts = {}) {
    super(message, { retryable: true, phase: "connect", ...parts });
  }
}

/** The supervisor went away while the call was open. */
export class PoolLost extends VllmportError {
  override readonly code = "pool_lost";
  constructor(message: string, parts: ErrorParts = {}) {
    super(message, { retryable: true, ...parts });
  }
}

/** This client was closed, or the pool is stopping. */
export class PoolClosed extends VllmportError {
  override readonly code = "pool_closed";
}

/** Bytes that break the protocol, whichever side sent them. */
export class ProtocolError extends VllmportError {
  override readonly code = "protocol_error";
}

/** The request can never succeed as it stands. */
export class InvalidRequest extends VllmportError {
  override readonly code = "invalid_request";
  /** The name of the offending argument, or "". */
  get parameter(): string {
    return String(this.details["parameter"] ?? "");
  }
}

/** The client's key may not do this, or the pool does not know it. */
export class PermissionDenied extends VllmportError {
  override readonly code = "permission_denied";
}

/** A universal call names, or would hand out, what is not on the allow-list. */
export class NotAllowed extends VllmportError {
  override readonly code = "not_allowed";
}

/** A bounded queue is full; come back after `retryAfter` seconds. */
export class Overloaded extends VllmportError {
  override readonly code = "overloaded";
  get retryAfter(): number {
    return Number(this.details["retry_after"] ?? 1);
  }
}

/** The model has no worker, because its workers keep dying; come back after `retryAfter` seconds. */
export class Unavailable extends VllmportError {
  override readonly code = "unavailable";
  get retryAfter(): number {
    return Number(this.details["retry_after"] ?? 1);
  }
}

/** The budget of the call ran out. */
export class DeadlineExceeded extends VllmportError {
  override readonly code = "deadline_exceeded";
  /** How many tokens there were by then. */
  get tokens(): number {
    return Number(this.details["tokens"] ?? 0);
  }
}

/** The caller gave the call up. */
export class Cancelled extends VllmportError {
  override readonly code = "cancelled";
}

/** A worker did not become ready; `stderr` is the last it said. */
export class StartupFailed extends VllmportError {
  override readonly code: string = "startup_failed";
  get stderr(): string[] {
    return (this.details["stderr"] as string[] | undefined) ?? [];
  }
}

/** No request of full length fits into the memory left for the KV cache. */
export class KVCacheTooSmall extends StartupFailed {
  override readonly code = "kv_cache_too_small";
}

/** Less memory is free than `gpu_memory_utilization` claims. */
export class GpuMemoryUtilization extends StartupFailed {
  override readonly code = "gpu_memory_utilization";
}

/** A GPU ran out of memory while the model was loaded. */
export class CudaOutOfMemory extends StartupFailed {
  override readonly code = "cuda_out_of_memory";
}

/** Two workers died after they had started the call. */
export class PoisonRequest extends VllmportError {
  override readonly code = "poison_request";
}

/** The worker died, or was replaced, while the call was on it. */
export class WorkerLost extends VllmportError {
  override readonly code = "worker_lost";
  /** How it ended, for people: "was killed by SIGKILL". */
  get exit(): string {
    return String(this.details["exit"] ?? "");
  }
}

/** The objects of a session are gone: with their worker, or because it ended. */
export class SessionLost extends VllmportError {
  override readonly code = "session_lost";
  /** How the worker ended, for people; "" if the session itself had ended. */
  get exit(): string {
    return String(this.details["exit"] ?? "");
  }
}

/** A session would hold more objects than it may; nothing of the call is kept. */
export class QuotaExceeded extends VllmportError {
  override readonly code = "quota_exceeded";
}

/** The engine inside a worker died; the worker is replaced. */
export class EngineDead extends VllmportError {
  override readonly code = "engine_dead";
}

/** The engine failed this one call. */
export class EngineError extends VllmportError {
  override readonly code = "engine_error";
}

/** An error of a newer peer: its code is kept, its class is the base. */
class UnknownError extends VllmportError {
  constructor(override readonly code: string, message: string, parts: ErrorParts) {
    super(message, parts);
    this.name = "VllmportError";
  }
}

type ErrorClass = new (message: string, parts: ErrorParts) => VllmportError;

export const ERRORS: ReadonlyMap<string, ErrorClass> = new Map<string, ErrorClass>([
  ["connect_failed", ConnectFailed],
  ["pool_lost", PoolLost],
  ["pool_closed", PoolClosed],
  ["protocol_error", ProtocolError],
  ["invalid_request", InvalidRequest],
  ["permission_denied", PermissionDenied],
  ["not_allowed", NotAllowed],
  ["overloaded", Overloaded],
  ["unavailable", Unavailable],
  ["deadline_exceeded", DeadlineExceeded],
  ["cancelled", Cancelled],
  ["startup_failed", StartupFailed],
  ["kv_cache_too_small", KVCacheTooSmall],
  ["gpu_memory_utilization", GpuMemoryUtilization],
  ["cuda_out_of_memory", CudaOutOfMemory],
  ["poison_request", PoisonRequest],
  ["worker_lost", WorkerLost],
  ["session_lost", SessionLost],
  ["quota_exceeded", QuotaExceeded],
  ["engine_dead", EngineDead],
  ["engine_error", EngineError],
]);

/** Build the error that a code of the wire names. */
export function errorFromCode(code: string, message: string, parts: ErrorParts): VllmportError {
  const known = ERRORS.get(code);
  return known === undefined
    ? new UnknownError(code, message, parts)
    : new known(message, parts);
}
