//! Every order in which the steps of short programs can follow one another.

/// Calls `each` with every order in which the programs' steps can follow one another.
pub(crate) fn every_order<S: Copy>(programs: &[&[S]], each: &mut impl FnMut(&[S])) {
    fn go<S: Copy>(programs: &[&[S]], done: &mut Vec<usize>, schedule: &mut Vec<S>, each: &mut impl FnMut(&[S])) {
        let mut is_over = true;
        for program in 0..programs.len() {
            if let Some(step) = programs[program].get(done[program]) {
                is_over = false;
                done[program] += 1;
                schedule.push(*step);
                go(programs, done, schedule, each);
                schedule.pop();
                done[program] -= 1;
            }
        }
        if is_over {
            each(schedule);
        }
    }
    go(programs, &mut vec![0; programs.len()], &mut Vec::new(), each);
}
