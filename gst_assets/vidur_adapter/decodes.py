"""The requests that decode, advanced all together: every step gives each of them one token.

So nothing needs counting request by request: when each ends, when it fills a KV block and how much context all have follow from the number of
the step in which it got its first token. Who is admitted or preempted belongs to `direct_loop`.
"""

from __future__ import annotations

from heapq import heappop, heappush

from gst_assets.vidur_adapter.registration import EngineRequest


class Decodes:
    """Requests with their prompts computed and tokens to come. Steps are numbered from 0."""

    def __init__(self, block_size: int) -> None:
        self.count = 0
        self._block_size = block_size
        self._offset = 0
        """Context tokens before a step, over all requests, less `count` times the number of the step."""
        self._ends: list[tuple[int, int, EngineRequest]] = []
        self._borders = [0] * block_size
        """How many requests need another KV block in a step, by the step's number modulo the block size."""

    def add(self, request: EngineRequest) -> None:
        """One more, which has its `first_token_step`."""
        first, prefill = request.first_token_step, request._num_prefill_tokens
        self.count += 1
        self._offset += prefill - first - 1
        # Vidur counts a token once it is sampled and asks for a block when the counted ones outgrow those held.
        self._borders[(first + 1 - prefill) % self._block_size] += 1
        heappush(self._ends, (first + request._num_decode_tokens - 1, request._id, request))

    def take_ending(self, step: int) -> list[EngineRequest]:
        """Remove the requests that get their last token from `step`, and count them as computed."""
        ending = []
        while self._ends and self._ends[0][0] == step:
            _, _, request = heappop(self._ends)
            first, prefill = request.first_token_step, request._num_prefill_tokens
            self.count -= 1
            self._offset -= prefill - first - 1
            self._borders[(first + 1 - prefill) % self._block_size] -= 1
            request._num_processed_tokens = request._num_stage_processed_tokens = request.total_tokens
            request._completed = True
            ending.append(request)
        return ending

    @property
    def next_end(self) -> int:
        """The first step that gives somebody the last token. There must be a request."""
        return self._ends[0][0]

    def context_tokens(self, step: int) -> int:
        """KV tokens present before `step`, over all requests."""
        return self._offset + self.count * step

    def new_blocks(self, step: int) -> int:
        """KV blocks that `step` takes."""
        return self._borders[step % self._block_size] if self.count else 0

    def new_blocks_of_run(self, step: int, num_steps: int) -> int:
        """KV blocks that `num_steps` steps from `step` on take."""
        whole, rest = divmod(num_steps, self._block_size)
        return whole * self.count + sum([self.new_blocks(one) for one in range(step, step + rest)])

    def steps_that_fit(self, step: int, most: int, free_blocks: int) -> int:
        """How many steps from `step` on, at most `most`, find the KV blocks they take."""
        # Once around, every request takes one block.
        steps = free_blocks // self.count * self._block_size
        free_blocks %= self.count
        while steps < most and self.new_blocks(step + steps) <= free_blocks:
            free_blocks -= self.new_blocks(step + steps)
            steps += 1
        return min(steps, most)

    def held_blocks(self, request: EngineRequest, step: int) -> int:
        """KV blocks of a request once `step`, its first one or a later one, is formed."""
        tokens = request._num_prefill_tokens + step - request.first_token_step
        return -(-tokens // self._block_size)

    def write_back(self, request: EngineRequest, step: int) -> None:
        """Give the entity the counters that Vidur would have counted once `step` is formed."""
        tokens = request._num_prefill_tokens + 1 + step - request.first_token_step
        request._num_processed_tokens = request._num_stage_processed_tokens = tokens
